"""Anchors of a dense head: boxes of a few scales and shapes around every cell's top-left corner (offset 0)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ifkd.models.anchor_assignment import Side

OCTAVE_SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
"""RetinaNet's side over stride, for a square anchor."""
REGION_SCALES = (8.0,)
"""Those of a region proposal network."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


def anchors_of_level(
    stride: int, shape: tuple[Side, Side], device: torch.device, *, scales: tuple[float, ...] = OCTAVE_SCALES
) -> Float[Tensor, "anchors 4"]:
    """Return the anchors of a level whose map has (height, width) cells of `stride` pixels.

    Ordered by row, column, ratio, scale, as the head's channels are. Base boxes are torchvision's, rounded to
    whole pixels.
    """
    generator = AnchorGenerator()
    base = generator.generate_anchors(
        [stride * scale for scale in scales],
        list(RATIOS),
        dtype=torch.float32,
        device=device,
    )
    rows = torch.arange(shape[0], device=device, dtype=torch.float32) * stride
    columns = torch.arange(shape[1], device=device, dtype=torch.float32) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (corners + base).reshape(-1, 4)
