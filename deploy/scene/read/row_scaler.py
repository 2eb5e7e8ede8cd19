"""Resize the tiles of a scene: as if the scene were resized and then cut, so every pixel is resized once.

An image is resized before it is cut into tiles in training, too (`ifkd.imagery.image_tiles`). A tile that is resized
alone differs only at its border, within one pixel: there, the filter lacks the pixels around the tile.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.image_files import resize

MAX_JOINT_PX = 8192
"""Width of a scene that is resized at a time, which bounds the memory of Pillow's copies."""


@runtime_checkable
class Rows(Protocol):
    """Rows of a scene."""

    def pixels(self, window: Window) -> Array:
        """Return a window, uint8 [height, width, 3], with the padding color beyond the scene."""
        ...


class RowScaler:
    """Resizes the windows of a grid to `tile_px` (height, width), row by row."""

    def __init__(self, grid: TileGrid, tile_px: tuple[int, int]) -> None:
        self._grid, self._tile_px = grid, tile_px
        sides = tuple(zip(grid.tile_px, tile_px, grid.multiple_px, strict=True))
        # The triangle filter reaches as many pixels as one pixel of the smaller one of the two images has.
        reach = [0 if window == tile else math.ceil(max(window / tile, 1.0)) for window, tile, _ in sides]
        self.margin_px = (reach[0], reach[1])
        """Scene pixels around a window that its tile depends on, (rows, columns)."""
        self._shared = all(start * tile % window == 0 for window, tile, start in sides)
        self._above: dict[tuple[int, int], tuple[int, Array]] = {}

    def tiles(self, rows: Rows, windows: Sequence[Window]) -> Iterator[Array]:
        """Yield the pixels of some windows of one row of the grid, left to right; the rows include the margin."""
        if self._grid.tile_px == self._tile_px:
            yield from (rows.pixels(window).copy() for window in windows)
            return
        above, self._above = self._above, {}
        for joint in self._joint(windows):
            first, last = joint[0], joint[-1]
            key = first.left, last.right
            band = self._band(rows, first.top, key, above.get(key))
            self._above[key] = first.top, band
            for window in joint:
                left = (window.left - first.left) * self._tile_px[1] // self._grid.tile_px[1]
                yield band[:, left : left + self._tile_px[1]]

    def _joint(self, windows: Sequence[Window]) -> Iterator[list[Window]]:
        """Yield the windows that are resized together."""
        joint = list(windows[:1])
        for before, window in pairwise(windows):
            if not self._shared or window.left > before.right or window.right - joint[0].left > MAX_JOINT_PX:
                yield joint
                joint = []
            joint.append(window)
        if joint:
            yield joint

    def _band(self, rows: Rows, top: int, columns: tuple[int, int], above: tuple[int, Array] | None) -> Array:
        """Return columns of a row of tiles; what they have in common with the row above is copied."""
        (height, width), (tile_height, tile_width) = self._grid.tile_px, self._tile_px
        first, kept = 0, []
        if above is not None and self._shared:
            shared = above[1][(top - above[0]) * tile_height // height :]
            first, kept = len(shared), [shared]
        start = top + first * height // tile_height
        part = Window(start, columns[0], top + height - start, columns[1] - columns[0])
        size = tile_height - first, part.width * tile_width // width
        covered, (down, across) = self._grid.covered, self.margin_px
        around_top, around_left = max(0, part.top - down), max(0, part.left - across)
        bottom, right = min(covered[0], part.bottom + down), min(covered[1], part.right + across)
        around = rows.pixels(Window(around_top, around_left, bottom - around_top, right - around_left))
        inner = Window(part.top - around_top, part.left - around_left, part.height, part.width)
        return np.concatenate([*kept, resize(around, size, of=inner)])
