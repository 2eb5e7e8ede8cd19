"""PKD (Cao et al., NeurIPS 2022): features agree up to each channel's mean and deviation."""

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted

WEIGHTS: dict[recipe.Family, float] = {"retinanet": 10.0, "faster_rcnn": 6.0}
EPSILON = 1e-6


class Pkd(Method):
    """One less Pearson's correlation of each channel over batch and places; nothing in it learns."""

    def __init__(self, config: recipe.PkdOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self._weight = WEIGHTS[student.family] if config.weight is None else config.weight
        chosen = recipe.select_levels(config.levels, student.levels)
        self._levels = [student.levels.index(level) for level in chosen]

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of half the mean squared difference of standardized maps."""
        differences = [
            standardized(views.student.pyramid[level]) - standardized(views.teacher.pyramid[level])
            for level in self._levels
        ]
        total = torch.stack([difference.square().mean() / 2 for difference in differences]).sum()
        return {"feature": weighted(total, self._weight)}


def standardized(
    features: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Return float32 maps whose channels have mean 0 and deviation 1 over the batch and all places."""
    values = features.float()
    centered = values - values.mean((0, 2, 3), keepdim=True)
    count = values[:, 0].numel()
    # A map of a single place has no deviation; and at exactly 0 a root has no finite gradient.
    variance = centered.square().sum((0, 2, 3), keepdim=True) / max(count - 1, 1)
    return centered / ((variance + EPSILON**2).sqrt() + EPSILON)
