"""CrossKD (Wang et al., CVPR 2024): the student's features, half way through the head, go on in the teacher's."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.core.errors import ConfigError
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted
from ifkd.models.anchor_assignment import UNDECIDED, decode, flatten_predictions
from ifkd.models.retinanet import PER_CELL, RetinaNet

EPSILON = 1e-6


class CrossKd(Method):
    """The teacher's own answers are the targets of what its head says of the student's features."""

    def __init__(self, config: recipe.CrossKdOptions, student: NetworkPair) -> None:
        super().__init__()
        detectors = student.detectors
        if detectors is None or not all(isinstance(detector, RetinaNet) for detector in detectors):
            raise ConfigError("CrossKD looks into the heads of RetinaNet, and so needs the detectors themselves")
        self.config = config
        self._networks = cast("tuple[RetinaNet, RetinaNet]", detectors)  # in a tuple: they are not parts of this module

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return both terms, over the number of positive anchors of the batch (at least 1)."""
        student, _ = self._networks
        every = torch.cat(student.anchors(views.student))
        logits, deltas = self._crossed(views)
        wanted_logits = _rows(views.teacher.logits)
        wanted_deltas = _rows(views.teacher.deltas)
        matches = [student.matches(every, target) for target in views.targets]
        positives = torch.stack([(matched >= 0).sum() for matched in matches]).sum().float()
        counted = torch.stack([matched != UNDECIDED for matched in matches])
        normalizer = mean_over_ranks(positives).clamp_min(1.0)
        soft = wanted_logits.sigmoid()
        distance = (logits.sigmoid() - soft).abs()
        classes = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none") * distance
        own, wanted = (decode(every.expand_as(moves), moves, None) for moves in (deltas, wanted_deltas))
        boxes = generalized_box_iou_loss(own, wanted) * soft.amax(dim=2)
        return {
            "classes": weighted((classes * counted[:, :, None]).sum() / normalizer, self.config.classes),
            "boxes": weighted((boxes * counted).sum() / normalizer, self.config.boxes),
        }

    def _crossed(
        self, views: DistillationBatch
    ) -> tuple[Float[Tensor, "batch anchors classes"], Float[Tensor, "batch anchors 4"]]:
        """Return logits and deltas of the student's features from the teacher's head."""
        student, teacher = (network.head for network in self._networks)
        ways = (
            (
                student.classification_head.conv,
                teacher.classification_head.conv,
                teacher.classification_head.cls_logits,
            ),
            (student.regression_head.conv, teacher.regression_head.conv, teacher.regression_head.bbox_reg),
        )
        answers = []
        for own, tower, predictor in ways:
            levels = [
                predictor(self._through(s, t, own, tower))
                for s, t in zip(views.student.pyramid, views.teacher.pyramid, strict=True)
            ]
            answers.append(_rows(tuple(levels)))
        return answers[0], answers[1]

    def _through(self, student: Tensor, teacher: Tensor, own: nn.Sequential, tower: nn.Sequential) -> Tensor:
        """Return the student's map after its own layers and the teacher's remaining ones, before the predictor."""
        depth = self.config.own_layers
        with torch.no_grad():
            goal = _before_activation(tower, teacher, depth)
        found = as_spread(_before_activation(own, student, depth), goal).relu()
        result: Tensor = tower[depth:](found)
        return result


def _before_activation(tower: nn.Sequential, features: Tensor, depth: int) -> Tensor:
    """Return a map after `depth` layers of a tower, before the last one's ReLU."""
    convolution, *_ = cast("nn.Sequential", tower[depth - 1])
    result: Tensor = convolution(tower[: depth - 1](features))
    return result


def as_spread(
    features: Float[Tensor, "batch channels height width"], goal: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Return a map whose channels have the means and deviations that `goal`'s channels have over a batch."""
    own, wanted = features.float(), goal.float()
    axes = (0, 2, 3)
    deviation = (own.var(axes, keepdim=True, correction=0) + EPSILON).sqrt()
    centerd = (own - own.mean(axes, keepdim=True)) / deviation
    return centerd * wanted.std(axes, keepdim=True, correction=0) + wanted.mean(axes, keepdim=True)


def _rows(levels: tuple[Tensor, ...]) -> Float[Tensor, "batch anchors values"]:
    return torch.cat([flatten_predictions(level, PER_CELL) for level in levels], dim=1).float()
