"""FRS (Du et al., NeurIPS 2021): features and logits weighted by the teacher's feature-richness score."""

import torch

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.distillation import DistillationBatch
from ifkd.distillation.fdr import feature_richness
from ifkd.distillation.methods.method import Adapters, Method, NetworkPair, Term, in_float, make_term, warmup_factor
from ifkd.distillation.pixelwise_losses import cross_entropy, entropy, squared_distance, weighted_sum

WEIGHTS: dict[recipe.Family, dict[str, float]] = {
    "retinanet": {"feature": 0.005, "head": 0.02},
    "faster_rcnn": {"feature": 0.002, "head": 0.1},
}


class Frs(Method):
    """Features, adapted by a 3x3 convolution, and logits, weighted by the feature-richness score."""

    def __init__(self, config: recipe.FrsOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        self.adapters = Adapters(networks, kernel=3)
        self._weights = networks.weights(WEIGHTS, config)

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return both terms: sums over channels, weighted means over locations, sums over levels."""
        batch = self.scaled(batch)
        scores = [feature_richness(logits) for logits in batch.teacher.logits]
        totals = mean_over_ranks(torch.stack([score.sum() for score in scores]))
        masks = [score / total for score, total in zip(scores, totals, strict=True)]
        teacher, student = in_float(batch.teacher.pyramid), self.adapters(batch.student.pyramid)
        feature = weighted_sum(masks, map(squared_distance, teacher, student))
        head = weighted_sum(masks, map(cross_entropy, batch.student.logits, batch.teacher.logits))
        warmup = warmup_factor(batch.iteration, self.config.warmup_iters)
        minimum = weighted_sum(masks, map(entropy, batch.teacher.logits))
        return {
            "feature": make_term(feature, self._weights["feature"], warmup=warmup),
            "head": make_term(head, self._weights["head"], warmup=warmup, minimum=minimum),
        }
