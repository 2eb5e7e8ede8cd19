"""ARSD (Yang et al., TGRS 2022): each object's core on one level, and boxes where the teacher's are better."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou_loss

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.core.errors import ConfigError
from ifkd.distillation import DistillationBatch
from ifkd.distillation.adapters import Adapters, in_float
from ifkd.distillation.box_masks import image_size, in_cells
from ifkd.distillation.methods.method import Method, NetworkPair, Term, weighted
from ifkd.distillation.pixelwise_losses import squared_distance
from ifkd.models import Targets
from ifkd.models.anchor_assignment import decode, flatten_predictions

BOX_FACTOR = 2.0
"""Of the GIoU loss, in the published code."""


class Arsd(Method):
    """Adaptive reinforcement supervision distillation: MCFI on features and logits, SSRD on boxes."""

    def __init__(self, config: recipe.ArsdOptions, student: NetworkPair) -> None:
        super().__init__()
        if student.detectors is None:
            raise ConfigError("ARSD looks at anchors, and so needs the detectors themselves")
        self.config = config
        self.names = student.levels
        self.adapters = Adapters(student, kernel=1, shared=True)
        self._detectors = student.detectors  # in a tuple, so that they are not parts of this module

    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the terms of features, logits and boxes."""
        shapes = [(features.shape[2], features.shape[3]) for features in views.student.pyramid]
        size = image_size(views.student, self.names)
        masks = core_masks(views.targets, shapes, size, binary=self.config.binary_mask)
        cells = torch.stack([(mask > 0).sum() for mask in masks]).sum().float()
        normalizer = 2 * mean_over_ranks(cells) + 1
        adapted, teacher = self.adapters(views.student.pyramid), in_float(views.teacher.pyramid)
        feature = [
            (mask * squared_distance(t, s)[:, 0]).sum() for mask, t, s in zip(masks, teacher, adapted, strict=True)
        ]
        head = [
            (mask * squared_distance(t.float(), s.float())[:, 0]).sum()
            for mask, t, s in zip(masks, views.teacher.logits, views.student.logits, strict=True)
        ]
        return {
            "feature": weighted(torch.stack(feature).sum() / normalizer, self.config.feature),
            "head": weighted(torch.stack(head).sum() / normalizer, self.config.head),
            "boxes": weighted(self._box_loss(views), self.config.boxes),
        }

    def _box_loss(self, views: DistillationBatch) -> Float[Tensor, ""]:
        """Return the sum over levels of the weighted mean of the GIoU loss toward the teacher's boxes (SSRD)."""
        by_level = self._detectors[0].anchors(views.student)
        anchors = torch.cat(by_level)
        level_of = torch.cat([torch.full((len(level),), n, device=anchors.device) for n, level in enumerate(by_level)])
        boxes = [_decoded(views.student.deltas, anchors), _decoded(views.teacher.deltas, anchors)]
        totals, weights = anchors.new_zeros(len(by_level)), anchors.new_zeros(len(by_level))
        for image, target in enumerate(views.targets):
            matched = self._detectors[0].matches(anchors, target)
            positive = matched >= 0
            objects = target.boxes[matched[positive]]
            student, teacher = boxes[0][image][positive], boxes[1][image][positive].detach()
            kept = is_worth_following(anchors[positive], student.detach(), teacher, objects).float()
            if self.config.centerness:
                kept = kept * centerness(anchors[positive], objects)
            losses = BOX_FACTOR * generalized_box_iou_loss(student, teacher)
            totals = totals.index_add(0, level_of[positive], kept * losses)
            weights = weights.index_add(0, level_of[positive], kept)
        counted = mean_over_ranks(weights)
        return (totals / torch.where(counted > 0, counted, 1.0)).sum()


def core_masks(
    targets: list[Targets], shapes: list[tuple[int, int]], size: tuple[int, int], *, binary: bool = False
) -> list[Float[Tensor, "batch _ _"]]:
    """Return the weight of each level's cells: of each object on the one level of its size, smaller ones more.

    Objects that overlap add; other cells are 0.
    """
    masks = [targets[0].boxes.new_zeros((len(targets), *shape)) for shape in shapes]
    for image, target in enumerate(targets):
        levels, weights = level_of_object(target.boxes, size, len(shapes)), area_weight(target.boxes, size)
        for level, (rows, columns) in enumerate(shapes):
            here = levels == level
            cells = in_cells(target.boxes[here], (rows, columns), size).tolist()
            for (left, top, right, bottom), weight in zip(cells, weights[here].tolist(), strict=True):
                row, column = min(int(top), rows - 1), min(int(left), columns - 1)
                masks[level][image, row : max(int(bottom), row + 1), column : max(int(right), column + 1)] += weight
    return [(mask > 0).float() for mask in masks] if binary else masks


def area_weight(boxes: Float[Tensor, "objects 4"], size: tuple[int, int]) -> Float[Tensor, " objects"]:
    """Return 1 + exp(-2 s), with s the root of the share of the image that a box covers."""
    return 1 + torch.exp(-2 * _share(boxes, size))


def level_of_object(boxes: Float[Tensor, "objects 4"], size: tuple[int, int], levels: int) -> Tensor:
    """Return the level of each object, 0 the finest, by the root of its share of the image."""
    return (4 + torch.log2(_share(boxes, size) + 1e-6)).floor().clamp(0, levels - 1).long()


def is_worth_following(
    anchors: Float[Tensor, "n 4"],
    student: Float[Tensor, "n 4"],
    teacher: Float[Tensor, "n 4"],
    objects: Float[Tensor, "n 4"],
) -> Bool[Tensor, " n"]:
    """Return where the teacher's box fits the object better than the student's, and that better than the anchor."""
    of_anchor, of_student, of_teacher = (_paired_iou(boxes, objects) for boxes in (anchors, student, teacher))
    return (of_teacher > of_student) & (of_student > of_anchor)


def centerness(anchors: Float[Tensor, "n 4"], objects: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Return how central each anchor's center is in its object: 1 in the middle, 0 at the border and outside."""
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = (center - objects[:, :2]).clamp_min(0.0), (objects[:, 2:] - center).clamp_min(0.0)
    return (torch.minimum(before, after) / torch.maximum(before, after).clamp_min(1e-6)).prod(dim=1).sqrt()


def _share(boxes: Float[Tensor, "objects 4"], size: tuple[int, int]) -> Float[Tensor, " objects"]:
    return ((boxes[:, 2:] - boxes[:, :2]).clamp_min(0.0).prod(dim=1) / (size[0] * size[1])).sqrt()


def _paired_iou(first: Float[Tensor, "n 4"], second: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    return box_iou(first, second).diagonal() if len(first) else first.new_zeros(0)


def _decoded(deltas: tuple[Tensor, ...], anchors: Float[Tensor, "anchors 4"]) -> list[Float[Tensor, "anchors 4"]]:
    every = torch.cat([flatten_predictions(level, level.shape[1] // 4) for level in deltas], dim=1).float()
    return [decode(anchors, of_image, None) for of_image in every]
