"""Merge the detections of a scene while its tiles are still processed.

Boxes affect each other only if they overlap, and a hull stays inside the bounding rectangle of its group. So boxes form
islands, whose bounding rectangles overlap with no other island, and an island that ends above the first row of the next
tiles is merged alone: the result is exactly that of one merge of the entire scene.

Boxes that touch a skipped tile, and those that overlap with them in a chain, are left out, as that tile might see them
otherwise. So the others are those of a search of all tiles. (One exception: a hull of pieces, which may cover a piece
that overlaps with none of its own, is missing if it needs a skipped tile.)
"""

import numpy as np

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.merge.overlaps import connected, overlapping_pairs, pairs_between
from ifkd.core.detections import Array


class StreamingMerge:
    """Merges the detections of a scene, one row of tiles after the other."""

    def __init__(self, settings: MergeSettings) -> None:
        self._settings = settings
        self._open = TileDetections.concatenate([])
        self._merged: list[TileDetections] = []
        self._left_out: list[TileDetections] = []
        self._skipped = np.zeros((0, 4))

    def __len__(self) -> int:
        return len(self._open)  # detections that may still overlap with later tiles

    def add(self, found: TileDetections, *, next_top: int, skipped: Array | None = None) -> None:
        """Add the detections of a row of tiles, and its skipped tiles as boxes [k, 4].

        `next_top` is the first row of pixels of the later tiles.
        """
        self._open = TileDetections.concatenate([self._open, found])
        if skipped is not None:
            self._skipped = np.concatenate([self._skipped, skipped])
        closed = closed_islands(self._open.detections.boxes, next_top)
        if closed.any():
            self._close(self._open.select(closed))
            self._open = self._open.select(~closed)
        lowest = self._open.detections.boxes[:, 1].min(initial=next_top)
        self._skipped = self._skipped[self._skipped[:, 3] > lowest]

    def finish(self) -> TileDetections:
        """Return the merged detections of the scene in canonical order."""
        self._close(self._open)
        self._open = TileDetections.concatenate([])
        self._merged = [TileDetections.concatenate(self._merged).in_canonical_order()]
        return self._merged[0]

    def left_out(self) -> TileDetections:
        """Return the merged detections that are left out because of skipped tiles."""
        return TileDetections.concatenate(self._left_out).in_canonical_order()

    def _close(self, closed: TileDetections) -> None:
        """Merge complete islands."""
        if len(self._skipped) and len(closed):
            boxes = closed.detections.boxes
            group = connected(len(closed), overlapping_pairs(boxes))
            touching = np.isin(group, group[pairs_between(boxes, self._skipped).first])
            self._left_out.append(merge(closed.select(touching), self._settings))
            closed = closed.select(~touching)
        self._merged.append(merge(closed, self._settings))


def closed_islands(boxes: Array, next_top: int) -> Array:
    """Return which boxes [n, 4] are in islands that end at or above the row `next_top`, bool [n]."""
    island = np.arange(len(boxes))
    rectangles = boxes.astype(np.float64)
    while True:
        pairs = overlapping_pairs(rectangles)
        if not len(pairs):
            return (rectangles[:, 3] <= next_top)[island]
        heads, member_of = np.unique(connected(len(rectangles), pairs), return_inverse=True)
        joined = rectangles[heads]
        np.minimum.at(joined[:, :2], member_of, rectangles[:, :2])
        np.maximum.at(joined[:, 2:], member_of, rectangles[:, 2:])
        island, rectangles = member_of[island], joined
