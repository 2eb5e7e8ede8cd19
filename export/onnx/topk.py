"""How many candidates of each pyramid level a graph looks at: one number, whatever the size of the tile.

A level of a small tile may have fewer than are looked at in a large one. It is then filled up with anchors that
nothing chooses, so that no shape of the graph's answer hangs on the tile's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ifkd.core.input_shapes import InputShapes

UNWANTED = -1e30
"""The logit of an anchor that only fills up."""


@dataclass(frozen=True, slots=True)
class LevelTopK:
    """What a graph looks at of one level."""

    kept: int
    """The best so many values are looked at."""
    short: int
    """Anchors that the level of the smallest tile lacks for that."""

    def filled(self, anchors: Tensor, value: float = 0.0, *, axis: int) -> Tensor:
        """Return values by anchor, with those of the absent anchors behind them.

        Args:
            anchors: Any values; `axis` counts the anchors.
            value: Of an absent anchor.
            axis: Negative, from the last.
        """
        return functional.pad(anchors, (0, 0) * (-1 - axis) + (0, self.short), value=value) if self.short else anchors


def level_topk(
    strides: Sequence[int], sizes: InputShapes, *, per_cell: int, values: int = 1, most: int
) -> tuple[LevelTopK, ...]:
    """Return the room of each level.

    Args:
        strides: Pixels of the tile for a cell, by level.
        sizes: The tiles that the graph takes.
        per_cell: Anchors of a cell.
        values: Values of an anchor, such as one for each class.
        most: Values that are looked at, where a level has as many.
    """
    rooms = []
    for stride in strides:
        largest, smallest = (cells(size, stride) * per_cell for size in (sizes.largest, sizes.smallest))
        kept = min(most, largest * values)
        rooms.append(LevelTopK(kept, max(0, -(-kept // values) - smallest)))
    return tuple(rooms)


def cells(size: tuple[int, int], stride: int) -> int:
    """Return the cells of a level in a tile of (height, width)."""
    return -(-size[0] // stride) * -(-size[1] // stride)
