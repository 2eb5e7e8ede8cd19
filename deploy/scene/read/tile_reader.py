"""Read the tiles of a scene row by row, so that every block of the file is decoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deploy.scene.read.scene import ALL_VALID, Patch, Scene
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
    scene: Scene,
    grid: TileGrid,
    *,
    first_row: int = 0,
    stop_row: int | None = None,
    selected: Array | None = None,
) -> Iterator[TileRead]:
    """Yield the tiles of a grid over a scene, row by row.

    A row of tiles is cut from one buffer of scene rows, and the overlap with the next row stays in the buffer, so every
    strip or block of the file is decoded once. If the rows cannot be read together, their tiles are read one by one.

    Args:
        scene: The scene.
        grid: Tiles, scene pixels.
        first_row: First row of tiles.
        stop_row: Row after the last one; by default the end of the grid.
        selected: bool [tiles]: tiles to read; the others have neither patch nor problem.
    """
    columns = len(grid.lefts)
    chosen = np.ones(len(grid), bool) if selected is None else selected
    used = np.flatnonzero(chosen.reshape(-1, columns).any(axis=0))
    if not len(used):
        used = np.array([0])
    left, right = grid.lefts[used[0]], min(grid.lefts[used[-1]] + grid.tile_px[1], scene.size[1])
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
        self._scene = scene
        self._left, self._right = left, right
        # Complete blocks are read, unless GDAL's cache keeps the blocks that two rows of tiles have in common.
        block = 1 if scene.block_rows > TALLEST_BLOCK_ROWS or scene.caches_a_row_of_blocks else scene.block_rows
        self._block = block
        rows = min(scene.size[0], max_rows + block - 1)
        self._pixels = np.empty((rows, right - left, 3), np.uint8)
        self._valid = None if scene.gapless else np.empty((rows, right - left), bool)
        self._top = self._bottom = 0

    def advance(self, top: int, bottom: int) -> bool:
        """Load the rows from `top`, which never decreases, to `bottom` or the scene's end.

        Returns:
            Whether the rows are readable.
        """
        height = self._scene.size[0]
        keep = max(0, self._bottom - top)
        if keep:
            first = top - self._top
            self._pixels[:keep] = self._pixels[first : first + keep]  # numpy handles overlapping slices
            if self._valid is not None:
                self._valid[:keep] = self._valid[first : first + keep]
        self._top, self._bottom = top, top + keep
        stop = min(-(-bottom // self._block) * self._block, height)
        if stop > self._bottom:
            window = Window(self._bottom, self._left, stop - self._bottom, self._right - self._left)
            rows = slice(keep, keep + window.height)
            try:
                self._scene.read_into(window, self._pixels[rows], None if self._valid is None else self._valid[rows])
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
        valid = np.broadcast_to(ALL_VALID, part.shape[:2]) if self._valid is None else self._valid[rows, columns]
        height, width = part.shape[:2]
        if (height, width) == (window.height, window.width):
            return Patch(part.copy(), valid.copy() if self._valid is not None else valid)
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        padded = np.zeros((window.height, window.width), bool)
        pixels[:height, :width], padded[:height, :width] = part, valid
        return Patch(pixels, padded)
