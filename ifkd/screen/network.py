"""Screen: a small, fully convolutional network, with one logit for each cell of 8x8 pixels: does it hold an object?"""

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd.models import Targets, TaskNetwork
from ifkd.models.detector import Images, Scalar, init_towers
from ifkd.recipe import ScreenOptions

CellMap: TypeAlias = Float[Tensor, "batch 1 rows columns"]
"""One value for each cell."""

STRIDE = 8
"""Side of a cell, pixels of the screen."""
CONTEXT_PX = 43
"""Pixels around a cell that affect its logit."""
BLOCKS = 2
"""Residual blocks at the last resolution."""
PRIOR = 0.01
"""Initial objectness: few cells hold an object."""
COVERED = 0.5
"""Fraction of a cell that an object covers, from which on the cell must be found."""
FOCUS = 2.0
"""Exponent of the focal loss."""


class Screen(TaskNetwork):
    """The network; the sides of its images are multiples of the stride."""

    def __init__(self, options: ScreenOptions) -> None:
        super().__init__()
        width = options.channels
        layers = [(3, width // 4, 2), (width // 4, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 2)]
        self.stem = nn.Sequential(*(_convolution(*layer) for layer in layers))
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(width, width), _convolution(width, width)) for _ in range(BLOCKS)
        )
        self.head = nn.Conv2d(width, 1, 1)
        init_towers(self.stem, self.blocks)
        nn.init.constant_(self.head.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, images: Images) -> CellMap:
        """Return the logits of the cells."""
        features = self.stem(images)
        for block in self.blocks:
            features = features + block(features)
        logits: Tensor = self.head(features)
        return logits

    def task_losses(self, output: CellMap, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the focal loss of the cells, in which each object has the same weight, whatever its size."""
        size = output.shape[2:]
        cells = [cell_targets(one, (size[0], size[1])) for one in targets]
        return {
            "objectness": focal_loss(
                output.float(),
                torch.stack([one[0] for one in cells])[:, None],
                torch.stack([one[1] for one in cells])[:, None],
            )
        }


def cell_targets(
    targets: Targets, size: tuple[int, int]
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """Return each cell's weight as object and as background; `size` is (rows, columns).

    An object's cells are those that it covers by half or more, and the one of its center; their weights sum up to 1.
    Other cells that it touches, and those of ignored regions, are neither.
    """
    covered = _coverage(targets.boxes, size)
    centers = ((targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2 / STRIDE).long()
    own = covered >= COVERED
    index = torch.arange(len(centers), device=centers.device)
    own[index, centers[:, 1].clamp(0, size[0] - 1), centers[:, 0].clamp(0, size[1] - 1)] = True
    weights = (own / own.sum(dim=(1, 2), keepdim=True)).sum(dim=0)
    touched = (covered > 0).any(dim=0) | (_coverage(targets.ignored, size) > 0).any(dim=0) | (weights > 0)
    return weights, (~touched).to(weights.dtype)


def focal_loss(logits: CellMap, objects: CellMap, background: CellMap) -> Scalar:
    """Return the weighted focal loss (Lin et al. 2017) over all cells, divided by the weight of the objects."""
    objectness = logits.sigmoid()
    found = (1 - objectness) ** FOCUS * functional.softplus(-logits)
    false = objectness**FOCUS * functional.softplus(logits)
    return (objects * found + background * false).sum() / objects.sum().clamp(min=1.0)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _coverage(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n rows columns"]:
    """Return the fraction of each cell that each box covers."""
    sides = []
    for axis, count in ((1, size[0]), (0, size[1])):
        start = torch.arange(count, device=boxes.device) * STRIDE
        low = torch.maximum(boxes[:, axis, None], start)
        high = torch.minimum(boxes[:, axis + 2, None], start + STRIDE)
        sides.append((high - low).clamp(min=0) / STRIDE)
    return sides[0][:, :, None] * sides[1][:, None, :]
