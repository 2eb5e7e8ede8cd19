"""AT, attention transfer (Zagoruyko and Komodakis 2017): spatial attention maps, independent of channels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, Term, make_term
from ifkd.models.detector import FeatureMap, Scalar


class AttentionTransfer(Method):
    """Mean squared difference of attention maps. It has no parameters, and the numbers of channels may differ."""

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the mean squared difference of attention maps."""
        difference = attention_transfer(batch.student.pyramid, batch.teacher.pyramid)
        return {"attention": make_term(difference, self.config.weight)}


def attention(features: FeatureMap) -> Float[Tensor, "batch cells"]:
    """Return the mean square over channels of each cell, normalized to a unit vector for each image."""
    return functional.normalize(features.float().square().mean(dim=1).flatten(1), dim=1)


def attention_transfer(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Scalar:
    """Return the mean over levels of the mean squared difference of attention maps."""
    differences = [(attention(s) - attention(t)).square().mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(differences).mean()
