"""AT, attention transfer (Zagoruyko and Komodakis 2017): where a map is active, whatever its channels mean."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted


class AttentionTransfer(Method):
    """The difference of the two networks' attention; nothing in it learns, and widths may differ."""

    def __init__(self, config: recipe.AttentionTransferOptions, student: NetworkPair) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the mean squared difference of attention maps."""
        difference = attention_transfer(views.student.pyramid, views.teacher.pyramid)
        return {"attention": weighted(difference, self.config.weight)}


def attention(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch cells"]:
    """Return the mean square over channels of each cell, as a unit vector for each image."""
    return functional.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def attention_transfer(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Float[Tensor, ""]:
    """Return the mean over levels of the mean squared difference of attention maps."""
    differences = [(attention(s) - attention(t)).square().mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(differences).mean()
