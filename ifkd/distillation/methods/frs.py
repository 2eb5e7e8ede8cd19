"""FRS (Du et al., NeurIPS 2021): learn where the teacher finds any class likely, whatever the labels say."""

import torch

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.fdr import feature_richness
from ifkd.distillation.methods.method import Method, NetworkPair, Term, warmup_factor, weighted
from ifkd.distillation.pixelwise_losses import cross_entropy, squared_distance

FEATURE_WEIGHTS: dict[recipe.Family, float] = {"retinanet": 0.005, "faster_rcnn": 0.002}
HEAD_WEIGHTS: dict[recipe.Family, float] = {"retinanet": 0.02, "faster_rcnn": 0.1}


class Frs(Method):
    """Features through a 3x3 convolution and logits, weighted by the feature-richness score."""

    def __init__(self, config: recipe.FrsOptions, student: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.adapters = Adapters(student, kernel=3)
        self._feature = FEATURE_WEIGHTS[student.family] if config.feature is None else config.feature
        self._head = HEAD_WEIGHTS[student.family] if config.head is None else config.head

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return both terms: sums over channels, weighted means over places, sums over levels."""
        scores = [feature_richness(logits) for logits in views.teacher.logits]
        totals = mean_over_ranks(torch.stack([score.sum() for score in scores]))
        masks = [score / total for score, total in zip(scores, totals, strict=True)]
        adapted = self.adapters(views.student.pyramid)
        feature = [
            (mask * squared_distance(teacher, student)).sum()
            for mask, teacher, student in zip(masks, in_float(views.teacher.pyramid), adapted, strict=True)
        ]
        head = [
            (mask * cross_entropy(student, teacher)).sum()
            for mask, teacher, student in zip(masks, views.teacher.logits, views.student.logits, strict=True)
        ]
        warm = warmup_factor(views.iteration, self.config.warmup_iters)
        return {
            "feature": weighted(torch.stack(feature).sum(), self._feature, warm=warm),
            "head": weighted(torch.stack(head).sum(), self._head, warm=warm),
        }
