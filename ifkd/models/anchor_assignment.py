"""Assignment of anchors and proposals to ground-truth objects, as in MMDetection's MaxIoUAssigner."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

BACKGROUND, IGNORE = -1, -2
"""Codes that `assign` returns in place of an object's index; torchvision's Matcher uses the same."""
IGNORED_FRACTION = 0.5
"""A background box is ignored if more than this fraction of its area is in an ignored region."""


def assign(
    boxes: Float[Tensor, "boxes 4"],
    objects: Float[Tensor, "objects 4"],
    ignored: Float[Tensor, "regions 4"],
    *,
    pos_iou: float,
    neg_iou: float,
    min_pos_iou: float | None = None,
) -> Int64[Tensor, " boxes"]:
    """Return the index of each box's object, BACKGROUND, or IGNORE.

    Args:
        boxes: Anchors or proposals, pixels.
        objects: Ground-truth boxes of the image.
        ignored: Ignored regions of the image.
        pos_iou: A box with at least this IoU is assigned to the object of highest IoU.
        neg_iou: A box with a lower IoU with every object is background.
        min_pos_iou: If given, each object is also assigned its boxes of highest IoU, if that IoU is positive and
            at least this. If several objects have the same best box, the last one gets it.
    """
    if len(objects) and len(boxes):
        overlaps = box_iou(objects, boxes)
        assigned: Tensor = Matcher(pos_iou, neg_iou)(overlaps)
        if min_pos_iou is not None:
            highest = overlaps.amax(dim=1, keepdim=True)
            is_best = (overlaps == highest) & (highest >= min_pos_iou) & (highest > 0)
            indices = torch.arange(len(overlaps), device=boxes.device)[:, None]
            best_for = torch.where(is_best, indices, IGNORE).amax(dim=0)
            assigned = torch.where(best_for >= 0, best_for, assigned)
    else:
        assigned = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    if len(ignored):
        covered = intersection_over_foreground(boxes, ignored).amax(dim=1)
        assigned = assigned.masked_fill((covered > IGNORED_FRACTION) & (assigned == BACKGROUND), IGNORE)
    return assigned


def intersection_over_foreground(boxes: Float[Tensor, "n 4"], regions: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Return the fraction of each box's area that is in each region (MMDetection's IoF)."""
    top_left = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return intersection / (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)[:, None]
