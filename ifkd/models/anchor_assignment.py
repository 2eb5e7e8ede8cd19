"""Arithmetic of boxes that every detector shares: decoding, assignment, regions to ignore."""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from ifkd.models.detector import Targets

MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Largest |dw| and |dh| in decoding."""
IGNORED_SHARE = 0.5
"""A background box with more than this share of its area in an ignored region teaches nothing."""
Side: TypeAlias = int | torch.SymInt
"""A length in pixels or cells; a symbol while a graph is exported for tiles of several sizes."""
BACKGROUND, UNDECIDED = -1, -2
"""What `assign` answers instead of an object's row; torchvision's Matcher has the same codes."""


def assign(
    boxes: Float[Tensor, "boxes 4"],
    target: Targets,
    *,
    positive: float,
    negative: float,
    least_claim: float | None = None,
) -> Int64[Tensor, " boxes"]:
    """Return the row of the object that each box stands for, or BACKGROUND, or UNDECIDED.

    Args:
        boxes: Anchors or proposals, pixels.
        target: The objects and ignored regions of the image.
        positive: A box of this IoU or more with an object stands for the one it overlaps most.
        negative: A box below this IoU with every object is background.
        least_claim: When given, each object claims the boxes of its own highest IoU, if that is this high and not
            0. Of several objects that claim one box the last gets it (as in mmdet's MaxIoUAssigner).
    """
    if len(target.boxes) and len(boxes):
        overlaps = box_iou(target.boxes, boxes)
        matched: Tensor = Matcher(positive, negative)(overlaps)
        if least_claim is not None:
            highest = overlaps.amax(dim=1, keepdim=True)
            claims = (overlaps == highest) & (highest >= least_claim) & (highest > 0)
            rows = torch.arange(len(overlaps), device=boxes.device)[:, None]
            claimant = torch.where(claims, rows, UNDECIDED).amax(dim=0)
            matched = torch.where(claimant >= 0, claimant, matched)
    else:
        matched = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    if len(target.ignored):
        share = intersection_over_first(boxes, target.ignored).amax(dim=1)
        matched = matched.masked_fill((share > IGNORED_SHARE) & (matched == BACKGROUND), UNDECIDED)
    return matched


def decode(
    boxes: Float[Tensor, "*shape 4"],
    deltas: Float[Tensor, "*shape 4"],
    size: tuple[Side, Side] | None,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Tensor, "*shape 4"]:
    """Return boxes moved and stretched by `deltas` (R-CNN's parametrisation), cut to `size` (height, width) if given.

    `weights` divide the deltas; they are the inverse of the deviations that the regression was trained with.
    """
    extent = boxes[..., 2:] - boxes[..., :2]
    if weights != (1.0, 1.0, 1.0, 1.0):
        deltas = deltas / deltas.new_tensor(weights)
    center = boxes[..., :2] + 0.5 * extent + deltas[..., :2] * extent
    half = 0.5 * extent * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if size is None:
        return torch.cat([center - half, center + half], dim=-1)
    limit = torch.stack([boxes.new_full((), size[1]), boxes.new_full((), size[0])])
    zero = torch.zeros_like(limit)
    return torch.cat([(center - half).clamp(zero, limit), (center + half).clamp(zero, limit)], dim=-1)


def flatten_predictions(level: Float[Tensor, "batch _ h w"], per_cell: int) -> Float[Tensor, "batch anchors values"]:
    """Return a head's map [batch, per_cell·values, h, w] as [batch, h·w·per_cell, values]."""
    batch, channels, height, width = level.shape
    split = level.view(batch, per_cell, channels // per_cell, height, width)
    return split.permute(0, 3, 4, 1, 2).reshape(batch, height * width * per_cell, channels // per_cell)


def intersection_over_first(boxes: Float[Tensor, "n 4"], regions: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Return the share of each box's area that lies in each region."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)[:, None]
