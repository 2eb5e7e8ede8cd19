"""ARSD (Yang et al., TGRS 2022): core features of each object on one level, and boxes where the teacher is better."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.core.errors import ConfigError
from ifkd.distillation import DistillationBatch
from ifkd.distillation.box_losses import box_losses
from ifkd.distillation.methods.fgd import boxes_in_cells
from ifkd.distillation.methods.method import Adapters, Method, NetworkPair, Term, in_float, make_term
from ifkd.distillation.pixelwise_losses import squared_distance, weighted_sum
from ifkd.models.box_decoding import concat_predictions, decode_boxes
from ifkd.models.detector import Scalar, Targets
from ifkd.models.oriented_deltas import encode_oriented, gaussian_divergence

BOX_FACTOR = 2.0
"""Factor of the boxes' loss in the published code."""


class Arsd(Method):
    """Adaptive reinforcement supervision distillation: MCFI on features and logits, SSRD on boxes."""

    def __init__(self, config: recipe.ArsdOptions, networks: NetworkPair) -> None:
        super().__init__(config, networks)
        if networks.detectors is None:
            raise ConfigError("ARSD uses anchors and needs both detectors")
        self.adapters = Adapters(networks, kernel=1, shared=True)
        self._student = networks.detectors[:1]  # in a tuple, so that it is not a submodule

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the terms of features, logits and boxes."""
        batch = self.scaled(batch)
        shapes = [(features.shape[2], features.shape[3]) for features in batch.student.pyramid]
        size = self.networks.image_size(batch.student)
        masks = core_masks(batch.targets, shapes, size, binary=self.config.binary_mask)
        cells = torch.stack([(mask > 0).sum() for mask in masks]).sum().float()
        normalizer = 2 * mean_over_ranks(cells) + 1 / world_size()
        adapted, teacher = self.adapters(batch.student.pyramid), in_float(batch.teacher.pyramid)
        feature = weighted_sum(masks, map(squared_distance, teacher, adapted))
        logits = in_float(batch.teacher.logits), in_float(batch.student.logits)
        head = weighted_sum(masks, map(squared_distance, *logits))
        return {
            "feature": make_term(feature / normalizer, self.config.feature),
            "head": make_term(head / normalizer, self.config.head),
            "boxes": make_term(self._box_loss(batch), self.config.boxes),
        }

    def _box_loss(self, batch: DistillationBatch) -> Scalar:
        """Return the sum over levels of the weighted mean of the losses toward the teacher's boxes (SSRD)."""
        (detector,) = self._student
        by_level = detector.anchors(batch.student)
        anchors = torch.cat(by_level)
        level_of = torch.cat([torch.full((len(level),), n, device=anchors.device) for n, level in enumerate(by_level)])
        cells = len(anchors) // sum(level.shape[2] * level.shape[3] for level in batch.student.deltas)
        student, teacher = (concat_predictions(output.deltas, cells) for output in (batch.student, batch.teacher))
        totals, weights = anchors.new_zeros(len(by_level)), anchors.new_zeros(len(by_level))
        for image, target in enumerate(batch.targets):
            assigned = detector.assign_anchors(anchors, target)
            positive = assigned >= 0
            matched, own, of_teacher = anchors[positive], student[image][positive], teacher[image][positive].detach()
            fit, student_fit, teacher_fit = (
                _fit(matched, deltas, target, assigned[positive]) for deltas in (None, own.detach(), of_teacher)
            )
            weight = ((teacher_fit > student_fit) & (student_fit > fit)).float()
            losses = BOX_FACTOR * box_losses(matched, own, of_teacher)
            totals = totals.index_add(0, level_of[positive], weight * losses)
            weights = weights.index_add(0, level_of[positive], weight)
        normalizer = mean_over_ranks(weights)
        return (totals / torch.where(normalizer > 0, normalizer, 1.0)).sum()


def core_masks(
    targets: list[Targets], shapes: list[tuple[int, int]], size: tuple[int, int], *, binary: bool = False
) -> list[Float[Tensor, "batch 1 _ _"]]:
    """Return the weight of each level's cells; each object has weights on one level, which depends on its size.

    Weights of overlapping objects are added; other cells are 0.
    """
    masks = [targets[0].boxes.new_zeros((len(targets), 1, *shape)) for shape in shapes]
    for image, target in enumerate(targets):
        levels, weights = level_of_object(target.boxes, size, len(shapes)), area_weight(target.boxes, size)
        for level, (rows, columns) in enumerate(shapes):
            on_level = levels == level
            cells = boxes_in_cells(target.boxes[on_level], (rows, columns), size).tolist()
            for (left, top, right, bottom), weight in zip(cells, weights[on_level].tolist(), strict=True):
                row, column = min(int(top), rows - 1), min(int(left), columns - 1)
                masks[level][image, 0, row : max(int(bottom), row + 1), column : max(int(right), column + 1)] += weight
    return [(mask > 0).float() for mask in masks] if binary else masks


def area_weight(boxes: Float[Tensor, "objects 4"], size: tuple[int, int]) -> Float[Tensor, " objects"]:
    """Return 1 + exp(-2 s), where s is the root of the fraction of the image that a box covers."""
    return 1 + torch.exp(-2 * _relative_side(boxes, size))


def level_of_object(boxes: Float[Tensor, "objects 4"], size: tuple[int, int], levels: int) -> Tensor:
    """Return the level of each object, 0 the finest, by the root of the fraction of the image that it covers."""
    return (4 + torch.log2(_relative_side(boxes, size) + 1e-6)).floor().clamp(0, levels - 1).long()


def _relative_side(boxes: Float[Tensor, "objects 4"], size: tuple[int, int]) -> Float[Tensor, " objects"]:
    return ((boxes[:, 2:] - boxes[:, :2]).clamp_min(0.0).prod(dim=1) / (size[0] * size[1])).sqrt()


def _paired_iou(first: Float[Tensor, "n 4"], second: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    return box_iou(first, second).diagonal() if len(first) else first.new_zeros(0)


def _fit(
    anchors: Float[Tensor, "n 4"],
    deltas: Float[Tensor, "n values"] | None,
    target: Targets,
    objects: Int64[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Return how well boxes fit their objects, more being better; without deltas, the boxes are the anchors.

    The measure is IoU, and for oriented boxes the negative divergence of their Gaussians.
    """
    if target.oriented is not None:
        values = anchors.new_zeros((len(anchors), 5)) if deltas is None else deltas
        return -gaussian_divergence(anchors, values, encode_oriented(target.oriented[objects], anchors))
    return _paired_iou(anchors if deltas is None else decode_boxes(anchors, deltas, None), target.boxes[objects])
