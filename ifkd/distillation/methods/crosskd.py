"""CrossKD (Wang et al., CVPR 2024): the student's intermediate head features in the rest of the teacher's head."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, shared_mean, world_size
from ifkd.core.errors import ConfigError
from ifkd.distillation import DistillationBatch
from ifkd.distillation.box_losses import box_losses
from ifkd.distillation.methods.method import Method, NetworkPair, Term, make_term
from ifkd.models.anchors import IGNORE
from ifkd.models.box_decoding import concat_predictions
from ifkd.models.detector import FeatureMap
from ifkd.models.retinanet import ANCHORS_PER_CELL, RetinaNet

EPSILON = 1e-6


class CrossKd(Method):
    """The teacher's predictions are the targets of its head's predictions on the student's features."""

    def __init__(self, config: recipe.CrossKdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        detectors = networks.detectors
        if detectors is None or not all(isinstance(detector, RetinaNet) for detector in detectors):
            raise ConfigError("CrossKD uses the heads of RetinaNet and needs both detectors")
        self._detectors = cast("tuple[RetinaNet, RetinaNet]", detectors)  # in a tuple, so that it is not a submodule

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return both terms, divided by the number of positive anchors of the batch (at least 1)."""
        student, _ = self._detectors
        anchors = torch.cat(student.anchors(batch.student))
        own, head = (detector.head for detector in self._detectors)
        predictor: nn.Module = head.classification_head.cls_logits
        logits = self._cross_predict(batch, own.classification_head.conv, head.classification_head.conv, predictor)
        predictor = head.regression_head.bbox_reg
        deltas = self._cross_predict(batch, own.regression_head.conv, head.regression_head.conv, predictor)
        teacher_logits = concat_predictions(batch.teacher.logits, ANCHORS_PER_CELL)
        teacher_deltas = concat_predictions(batch.teacher.deltas, ANCHORS_PER_CELL)
        assignments = [student.assign_anchors(anchors, target) for target in batch.targets]
        positives = torch.stack([(assigned >= 0).sum() for assigned in assignments]).sum().float()
        valid = torch.stack([assigned != IGNORE for assigned in assignments])
        normalizer = mean_over_ranks(positives).clamp_min(1 / world_size())
        soft = teacher_logits.sigmoid()
        distance = (logits.sigmoid() - soft).abs()
        classes = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none") * distance
        boxes = box_losses(anchors, deltas, teacher_deltas) * soft.amax(dim=2)
        return {
            "classes": make_term((classes * valid[:, :, None]).sum() / normalizer, self.config.classes),
            "boxes": make_term((boxes * valid).sum() / normalizer, self.config.boxes),
        }

    def _cross_predict(
        self, batch: DistillationBatch, own: nn.Sequential, tower: nn.Sequential, predictor: nn.Module
    ) -> Float[Tensor, "batch anchors values"]:
        """Return the predictions of the teacher's tower and predictor for maps after the student's own layers."""
        depth, maps = self.config.own_layers, []
        for student, teacher in zip(batch.student.pyramid, batch.teacher.pyramid, strict=True):
            with torch.no_grad():
                reference = _before_activation(tower, teacher, depth)
            aligned = match_statistics(_before_activation(own, student, depth), reference).relu()
            maps.append(predictor(tower[depth:](aligned)))
        return concat_predictions(tuple(maps), ANCHORS_PER_CELL)


def _before_activation(tower: nn.Sequential, features: Tensor, depth: int) -> Tensor:
    """Return a map after `depth` layers of a tower, before the last one's ReLU."""
    convolution, *_ = cast("nn.Sequential", tower[depth - 1])
    result: Tensor = convolution(tower[: depth - 1](features))
    return result


def match_statistics(features: FeatureMap, reference: FeatureMap) -> FeatureMap:
    """Return `features` with each channel's mean and deviation over all ranks' batches set to those of `reference`."""
    (mean, variance), (target_mean, target_variance) = _moments(features.float()), _moments(reference.float())
    return (features.float() - mean) / (variance + EPSILON).sqrt() * target_variance.sqrt() + target_mean


def _moments(features: FeatureMap) -> tuple[Tensor, Tensor]:
    """Return each channel's mean and variance."""
    mean = shared_mean(features.mean((0, 2, 3), keepdim=True))
    return mean, shared_mean((features - mean).square().mean((0, 2, 3), keepdim=True))
