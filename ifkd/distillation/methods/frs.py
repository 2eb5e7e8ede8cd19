"""FRS (Du et al., NeurIPS 2021): features and logits weighted by the teacher's feature-richness score."""

import torch

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.fdr import feature_richness
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term, warmup_factor, weights_of_family
from ifkd.distillation.pixelwise_losses import cross_entropy, squared_distance

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"feature": 0.005, "head": 0.02},
    "faster_rcnn": {"feature": 0.002, "head": 0.1},
}


class Frs(Method):
    """Features, adapted by a 3x3 convolution, and logits, weighted by the feature-richness score."""

    def __init__(self, config: recipe.FrsOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self.adapters = Adapters(networks, kernel=3)
        self._weights = weights_of_family(WEIGHTS, networks.family, config)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return both terms: sums over channels, weighted means over locations, sums over levels."""
        scores = [feature_richness(logits) for logits in batch.teacher.logits]
        totals = mean_over_ranks(torch.stack([score.sum() for score in scores]))
        masks = [score / total for score, total in zip(scores, totals, strict=True)]
        adapted = self.adapters(batch.student.pyramid)
        feature = [
            (mask * squared_distance(teacher, student)).sum()
            for mask, teacher, student in zip(masks, in_float(batch.teacher.pyramid), adapted, strict=True)
        ]
        head = [
            (mask * cross_entropy(student, teacher)).sum()
            for mask, teacher, student in zip(masks, batch.teacher.logits, batch.student.logits, strict=True)
        ]
        warmup = warmup_factor(batch.iteration, self.config.warmup_iters)
        return {
            "feature": make_term(torch.stack(feature).sum(), self._weights["feature"], warmup=warmup),
            "head": make_term(torch.stack(head).sum(), self._weights["head"], warmup=warmup),
        }
