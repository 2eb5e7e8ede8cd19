"""PKD (Cao et al., NeurIPS 2022): features standardized per channel."""

import torch

from ifkd import recipe
from ifkd.compute.distributed import shared_mean, world_size
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term
from ifkd.models.detector import FeatureMap

WEIGHTS: dict[recipe.Family, float] = {"retinanet": 10.0, "faster_rcnn": 6.0}
EPSILON = 1e-6


class Pkd(Method):
    """1 - Pearson's correlation of each channel over batch and locations. It has no parameters."""

    def __init__(self, config: recipe.PkdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self._weight = WEIGHTS[networks.family] if config.weight is None else config.weight
        self._levels = networks.level_indices(config.levels)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the sum over levels of half the mean squared difference of standardized maps."""
        student, teacher = batch.student.pyramid, batch.teacher.pyramid
        differences = [standardize(student[level]) - standardize(teacher[level]) for level in self._levels]
        total = torch.stack([difference.square().mean() / 2 for difference in differences]).sum()
        return {"feature": make_term(total, self._weight)}


def standardize(features: FeatureMap) -> FeatureMap:
    """Return float32 maps whose channels have mean 0 and deviation 1 over all ranks' batches and locations."""
    values = features.float()
    centered = values - shared_mean(values.mean((0, 2, 3), keepdim=True))
    count = values[:, 0].numel()
    # The deviation of a single location is undefined, and the gradient of a root at 0 is infinite.
    variance = shared_mean(centered.square().sum((0, 2, 3), keepdim=True)) / max(
        count - 1 / world_size(), 1 / world_size()
    )
    return centered / ((variance + EPSILON**2).sqrt() + EPSILON)
