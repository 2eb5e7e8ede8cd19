"""Conversion of boxes from pixels to the cells of a feature map."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def boxes_in_cells(
    boxes: Float[Tensor, "objects 4"], shape: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "objects 4"]:
    """Return boxes (pixels of images of `size`) in cells of a map of `shape`; both are (height, width)."""
    scale_x, scale_y = shape[1] / size[1], shape[0] / size[0]
    return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])


def covered_cells(
    boxes: Float[Tensor, "objects 4"], shape: tuple[int, int], size: tuple[int, int]
) -> Int64[Tensor, "objects 4"]:
    """Return the first column, first row, last column and last row that each box touches (inclusive)."""
    cells = boxes_in_cells(boxes, shape, size)
    ends = torch.cat([cells[:, :2].floor(), cells[:, 2:].ceil()], dim=1).long()
    limit = torch.tensor([shape[1] - 1, shape[0] - 1] * 2, device=boxes.device)
    return ends.clamp(min=torch.zeros_like(limit), max=limit)
