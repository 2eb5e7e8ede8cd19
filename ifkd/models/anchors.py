"""Anchors of a dense head."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ifkd.models.box_decoding import Side

OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Anchors of one aspect ratio in a cell of RetinaNet: their sides, relative to the smallest."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


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
