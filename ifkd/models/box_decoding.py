"""Decoding of head outputs to boxes."""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Side: TypeAlias = int | torch.SymInt
"""A length in pixels or cells; symbolic in an export with dynamic shapes."""
MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Largest |dw| and |dh| in decoding."""


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
