"""The cells of a pyramid's map that an object covers."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ifkd import recipe
from ifkd.models import DetectorOutput


def image_size(output: DetectorOutput, levels: tuple[recipe.Level, ...]) -> tuple[int, int]:
    """Return the (height, width) of the images of a forward, whose sides are multiples of 32."""
    stride = 2 ** int(levels[0][1:])
    height, width = output.pyramid[0].shape[2:]
    return height * stride, width * stride


def in_cells(
    boxes: Float[Tensor, "objects 4"], shape: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "objects 4"]:
    """Return boxes (pixels of images of `size`) in the cells of a map of `shape`; both are (height, width)."""
    across, down = shape[1] / size[1], shape[0] / size[0]
    return boxes * boxes.new_tensor([across, down, across, down])


def touched_cells(
    boxes: Float[Tensor, "objects 4"], shape: tuple[int, int], size: tuple[int, int]
) -> Int64[Tensor, "objects 4"]:
    """Return the first column, first row, last column and last row that each box touches, both ends inclusive."""
    cells = in_cells(boxes, shape, size)
    ends = torch.cat([cells[:, :2].floor(), cells[:, 2:].ceil()], dim=1).long()
    limit = torch.tensor([shape[1] - 1, shape[0] - 1] * 2, device=boxes.device)
    return ends.clamp(min=torch.zeros_like(limit), max=limit)
