"""Number of candidates per pyramid level, the same for every tile size.

In a small tile, a level can have fewer anchors than top-k takes. The level is then padded with anchors that top-k ranks
last, so that no output shape depends on the size of the tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ifkd.core.input_shapes import InputShapes

PADDING_LOGIT = -1e30
"""Logit of a padding anchor."""


@dataclass(frozen=True, slots=True)
class LevelTopK:
    """Top-k of one pyramid level."""

    k: int
    """Number of candidates kept."""
    padding: int
    """Number of anchors appended so that the smallest tile has k candidates, too."""

    def padded(self, values: Tensor, fill: float = 0.0, *, axis: int) -> Tensor:
        """Return `values` with entries for the padding anchors appended.

        Args:
            values: One entry per anchor along `axis`.
            fill: Value of a padding anchor.
            axis: Negative, counted from the last.
        """
        return functional.pad(values, (0, 0) * (-1 - axis) + (0, self.padding), value=fill) if self.padding else values


def level_topk(
    strides: Sequence[int], shapes: InputShapes, *, anchors_per_cell: int, values_per_anchor: int = 1, max_k: int
) -> tuple[LevelTopK, ...]:
    """Return the top-k of each level.

    Args:
        strides: Stride of each level, pixels of the tile.
        shapes: Tile sizes that the model accepts.
        anchors_per_cell: Anchors at each position.
        values_per_anchor: Scores of an anchor, such as one per class.
        max_k: Candidates per level, if the level of the largest tile has as many.
    """
    levels = []
    for stride in strides:
        largest, smallest = (_cells(size, stride) * anchors_per_cell for size in (shapes.largest, shapes.smallest))
        k = min(max_k, largest * values_per_anchor)
        levels.append(LevelTopK(k, max(0, -(-k // values_per_anchor) - smallest)))
    return tuple(levels)


def _cells(size: tuple[int, int], stride: int) -> int:
    """Return the number of positions of a level in a tile of (height, width)."""
    return -(-size[0] // stride) * -(-size[1] // stride)
