"""AT, attention transfer (Zagoruyko and Komodakis 2017): where a map is active, whatever its channels mean."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

WEIGHT = 1000.0


def attention(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch cells"]:
    """Return the mean square over channels of each cell, as a unit vector for each image."""
    return functional.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def attention_transfer(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Float[Tensor, ""]:
    """Return the mean over levels of the mean squared difference of attention maps."""
    differences = [(attention(s) - attention(t)).square().mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(differences).mean()
