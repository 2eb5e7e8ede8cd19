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
    """Number of anchors appended so that the smallest tile has enough for k candidates, too."""
    most_anchors: int
    """Number of anchors of the largest tile."""

    def padded(self, values: Tensor, fill: float = 0.0, *, axis: int) -> Tensor:
        """Return `values`, one per anchor along the negative `axis`, followed by `fill` for the padding anchors."""
        return functional.pad(values, (0, 0) * (-1 - axis) + (0, self.padding), value=fill) if self.padding else values


def level_topk(
    strides: Sequence[int], shapes: InputShapes, *, anchors_per_cell: int, values_per_anchor: int = 1, max_k: int
) -> tuple[LevelTopK, ...]:
    """Return the top-k of each level: `max_k`, or all values of the level of the largest tile if there are fewer.

    An anchor has several values if it has a score for each class.
    """
    levels = []
    for stride in strides:
        largest, smallest = (
            -(-height // stride) * -(-width // stride) * anchors_per_cell
            for height, width in (shapes.largest, shapes.smallest)
        )
        k = min(max_k, largest * values_per_anchor)
        # `best_pairs` selects k anchors first where there are more.
        needed = k if largest > k else -(-k // values_per_anchor)
        levels.append(LevelTopK(k, max(0, needed - smallest), largest))
    return tuple(levels)
