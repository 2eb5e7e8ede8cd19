"""The merge of a scene while its tiles still come: what no tile to come can touch is finished and let go.

Boxes are bound to each other only where they share area, and a hull stays within the rectangle around its group. So
boxes are gathered into islands: groups whose rectangles share no area with any other group's. An island that ends
above the first row of the next tiles is merged by itself, and the islands' answers together are exactly the answer of
one merge of everything. What is held is what lies on the present rows, beside the finished objects.
"""

import numpy as np

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.merge.overlaps import connected, overlapping_pairs
from ifkd.core.detections import Array


class StreamingMerge:
    """Takes detections row of tiles by row of tiles, and gives the objects of the scene.

    Args:
        settings: How tiles are brought together.
    """

    def __init__(self, settings: MergeSettings) -> None:
        self._settings = settings
        self._open = TileDetections.concatenate([])
        self._done: list[TileDetections] = []

    def __len__(self) -> int:
        """Return the number of detections that wait for tiles to come."""
        return len(self._open)

    def add(self, found: TileDetections, *, next_top: int) -> None:
        """Take the detections of a row of tiles; `next_top` is the first row of pixels that later tiles see."""
        self._open = TileDetections.concatenate([self._open, found])
        closed = closed_islands(self._open.detections.boxes, next_top)
        if closed.any():
            self._done.append(merge(self._open.select(closed), self._settings))
            self._open = self._open.select(~closed)

    def finish(self) -> TileDetections:
        """Return the objects of the scene in canonical order."""
        self._done.append(merge(self._open, self._settings))
        self._open = TileDetections.concatenate([])
        self._done = [TileDetections.concatenate(self._done).in_canonical_order()]
        return self._done[0]


def closed_islands(boxes: Array, next_top: int) -> Array:
    """Return which boxes [n, 4] belong to islands that end at or above the row `next_top`, bool [n]."""
    island = np.arange(len(boxes))
    around = boxes.astype(np.float64)
    while True:
        pairs = overlapping_pairs(around)
        if not len(pairs):
            break
        group = connected(len(around), pairs.first, pairs.second)
        heads, member_of = np.unique(group, return_inverse=True)
        grown = around[heads]
        np.minimum.at(grown[:, :2], member_of, around[:, :2])
        np.maximum.at(grown[:, 2:], member_of, around[:, 2:])
        island, around = member_of[island], grown
    closed: Array = (around[:, 3] <= next_top)[island]
    return closed
