"""Anchors of a dense head, and the assignment of anchors and proposals to objects by MMDetection's MaxIoUAssigner."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from ifkd.models.box_decoding import Side

OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Anchors of one aspect ratio in a cell of RetinaNet: their sides, relative to the smallest."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""
BACKGROUND, IGNORE = -1, -2
"""Codes that `assign` returns in place of an object's index; torchvision's Matcher uses the same."""
IGNORED_FRACTION = 0.5
"""A background box is ignored if more than this fraction of its area is in an ignored region."""


def anchors_of_level(
    stride: int, shape: tuple[Side, Side], device: torch.device, *, scales: tuple[float, ...]
) -> Float[Tensor, "anchors 4"]:
    """Return the anchors of a level whose map has (height, width) cells of `stride` pixels.

    `scales` are the sides of the square anchors, in strides. Anchors are centered on the top-left corner of each cell
    and ordered by row, column, aspect ratio and scale, like the head's channels. Base anchors are torchvision's,
    rounded to integer pixels.
    """
    base = AnchorGenerator().generate_anchors(
        [stride * scale for scale in scales], list(ASPECT_RATIOS), dtype=torch.float32, device=device
    )
    rows = torch.arange(shape[0], device=device, dtype=torch.float32) * stride
    columns = torch.arange(shape[1], device=device, dtype=torch.float32) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (corners + base).reshape(-1, 4)


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

    A box belongs to the object of highest IoU if that is at least `pos_iou`, and to the background if it is below
    `neg_iou`. With `min_pos_iou`, each object is also assigned its boxes of highest IoU, if that IoU is positive and at
    least this; if several objects have the same best box, the last one gets it.
    """
    assigned = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    if len(objects) and len(boxes):
        overlaps = box_iou(objects, boxes)
        assigned = Matcher(pos_iou, neg_iou)(overlaps)
        if min_pos_iou is not None:
            highest = overlaps.amax(dim=1, keepdim=True)
            is_best = (overlaps == highest) & (highest >= min_pos_iou) & (highest > 0)
            indices = torch.arange(len(overlaps), device=boxes.device)[:, None]
            best_for = torch.where(is_best, indices, IGNORE).amax(dim=0)
            assigned = torch.where(best_for >= 0, best_for, assigned)
    if len(ignored):
        top_left = torch.maximum(boxes[:, None, :2], ignored[None, :, :2])
        bottom_right = torch.minimum(boxes[:, None, 2:], ignored[None, :, 2:])
        intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
        covered = intersection / (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)[:, None]
        assigned = assigned.masked_fill((covered.amax(dim=1) > IGNORED_FRACTION) & (assigned == BACKGROUND), IGNORE)
    return assigned
