"""Read the tiles of a scene row by row, so that every block of the file is decoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deploy.scene.read.scene import Patch, Scene
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.contrast import PADDING_RGB

TALLEST_BLOCK_ROWS = 1024
"""Taller blocks, such as one strip for the entire file, are not read completely in advance."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRead:
    """A tile as read from the scene."""

    index: int
    """Index in the grid, row by row."""
    window: Window
    patch: Patch | None
    """None for a tile that is unreadable or not selected."""
    problem: str | None = None
    """Reason why the tile is unreadable."""


def read_tiles(
    scene: Scene, grid: TileGrid, *, first_row: int = 0, stop_row: int | None = None, selected: Array | None = None
) -> Iterator[TileRead]:
    """Yield the tiles of a grid over a scene, row by row, from the row of tiles `first_row` up to `stop_row`.

    A row of tiles is cut from one buffer of scene rows, and the overlap with the next row stays in the buffer, so every
    strip or block of the file is decoded once. If the rows cannot be read together, their tiles are read one by one.
    Tiles that are not `selected`, bool [tiles], have neither patch nor problem.
    """
    columns = len(grid.lefts)
    chosen = np.ones(len(grid), bool) if selected is None else selected
    used = np.array(grid.lefts)[chosen.reshape(-1, columns).any(axis=0)].tolist() or [0]
    left, right = used[0], min(used[-1] + grid.tile_px[1], scene.size[1])
    buffer = _RowBuffer(scene, left, right, max_rows=grid.tile_px[0])
    for number, row in enumerate(islice(grid.rows(), first_row, stop_row), start=first_row):
        indices = range(number * columns, (number + 1) * columns)
        readable = chosen[indices.start : indices.stop].any() and buffer.advance(row[0].top, row[0].bottom)
        for index, window in zip(indices, row, strict=True):
            if not chosen[index]:
                yield TileRead(index, window, None)
            elif readable:
                yield TileRead(index, window, buffer.cut(window))
            else:
                yield _read_tile(scene, index, window)


def _read_tile(scene: Scene, index: int, window: Window) -> TileRead:
    try:
        return TileRead(index, window, scene.read(window))
    except SceneError as error:
        return TileRead(index, window, None, str(error))


class _RowBuffer:
    """Scene rows of the current row of tiles; whole blocks are read."""

    def __init__(self, scene: Scene, left: int, right: int, *, max_rows: int) -> None:
        self._scene, self._left, self._right = scene, left, right
        # Complete blocks are read, unless GDAL's cache keeps the blocks that two rows of tiles have in common.
        one_row = scene.block_rows > TALLEST_BLOCK_ROWS or scene.caches_a_row_of_blocks
        self._block = 1 if one_row else scene.block_rows
        rows = min(scene.size[0], max_rows + self._block - 1)
        self._pixels = np.empty((rows, right - left, 3), np.uint8)
        self._valid = None if scene.gapless else np.empty((rows, right - left), bool)
        self._top = self._bottom = 0

    def advance(self, top: int, bottom: int) -> bool:
        """Load the rows from `top`, which never decreases, to `bottom` or the scene's end; False if unreadable."""
        keep, first = max(0, self._bottom - top), top - self._top
        for rows in (self._pixels, self._valid):
            if rows is not None:
                rows[:keep] = rows[first : first + keep]  # numpy handles overlapping slices
        self._top, self._bottom = top, top + keep
        stop = min(-(-bottom // self._block) * self._block, self._scene.size[0])
        if stop > self._bottom:
            window = Window(self._bottom, self._left, stop - self._bottom, self._right - self._left)
            new = slice(keep, keep + window.height)
            try:
                self._scene.read_into(window, self._pixels[new], None if self._valid is None else self._valid[new])
            except SceneError:
                self._bottom = self._top
                return False
            self._bottom = stop
        return True

    def cut(self, window: Window) -> Patch:
        """Return a copy of a tile, padded beyond the scene."""
        rows = slice(window.top - self._top, min(window.bottom, self._bottom) - self._top)
        columns = slice(window.left - self._left, min(window.right, self._right) - self._left)
        part = self._pixels[rows, columns]
        valid = np.broadcast_to(np.True_, part.shape[:2]) if self._valid is None else self._valid[rows, columns]
        height, width = part.shape[:2]
        if (height, width) == (window.height, window.width):
            return Patch(part.copy(), valid.copy())
        pixels = np.full((window.height, window.width, 3), PADDING_RGB, np.uint8)
        padded = np.zeros((window.height, window.width), bool)
        pixels[:height, :width], padded[:height, :width] = part, valid
        return Patch(pixels, padded)
