"""Decoding of head outputs: the best anchor-class pairs, and their boxes."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Side: TypeAlias = int | torch.SymInt
"""A length in pixels or cells; symbolic in an export with dynamic shapes."""
MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Largest |dw| and |dh| in decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class BestPairs:
    """The best anchor-class pairs of each image, by descending score."""

    scores: Float[Tensor, "batch k"]
    anchors: Int64[Tensor, "batch k"]
    labels: Int64[Tensor, "batch k"]


def best_pairs(scores: Float[Tensor, "batch anchors classes"], k: int, *, most_anchors: int | None = None) -> BestPairs:
    """Return the result of top-k over all anchor-class pairs; of equal scores, it takes those of the first anchors.

    A pair can only be among the best k if its anchor is among the k anchors with the best class. These are selected
    first: TensorRT searches a long axis serially, and some runtimes divide integers in float32, which is exact only
    for pairs below 2^24. In an export with dynamic shapes, `most_anchors` is the largest number of anchors, at least k
    if the number of anchors always is.
    """
    classes = scores.shape[2]
    anchors = None
    if classes > 1 and (most_anchors or scores.shape[1]) > k:
        best_anchors = scores.amax(dim=2).topk(k, dim=1).indices
        # By index, so that pairs of equal scores keep their order.
        anchors = best_anchors.topk(k, dim=1, largest=False).values
        scores = scores.gather(1, anchors[:, :, None].expand(-1, -1, classes))
    best, pair = scores.flatten(1).topk(k, dim=1)
    row = pair // classes
    return BestPairs(best, row if anchors is None else anchors.gather(1, row), pair - row * classes)


def decode_boxes(
    boxes: Float[Tensor, "*shape 4"],
    deltas: Float[Tensor, "*shape 4"],
    size: tuple[Side, Side] | None,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Tensor, "*shape 4"]:
    """Return `boxes` (pixels) shifted and scaled by `deltas` (dx, dy, dw, dh; R-CNN's parametrization).

    The result is clipped to `size`, the image's (height, width), if it is given. `weights` divide the deltas, as in
    torchvision's BoxCoder.
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


def concat_predictions(levels: tuple[Tensor, ...], per_cell: int) -> Float[Tensor, "batch anchors values"]:
    """Return the flattened predictions of all levels in float32."""
    return torch.cat([flatten_predictions(level, per_cell) for level in levels], dim=1).float()
