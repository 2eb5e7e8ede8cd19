"""The tiles of a scene, cut from bands of rows, so that every block of the file is decoded once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deploy.scene.read.scene import ALL_VALID, Patch, Scene
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.image_files import PADDING_RGB

TALLEST_BLOCK_ROWS = 1024
"""Blocks taller than this (one strip for the whole file, say) are not waited for."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRead:
    """One window of a grid, as it was read."""

    index: int
    """Place in the grid, row by row."""
    window: Window
    patch: Patch | None
    """None when it could not be read."""
    problem: str | None = None
    """Why not."""


def read_tiles(
    scene: Scene,
    grid: TileGrid,
    *,
    first_row: int = 0,
    stop_row: int | None = None,
    wanted: Array | None = None,
) -> Iterator[TileRead]:
    """Yield the windows of a grid over a scene, row by row.

    A row of tiles is cut from one band of the scene, and what two bands share is kept, so every strip or block of
    the file is decoded once. Where a band cannot be read, its tiles are tried one by one.

    Args:
        scene: What to read.
        grid: Its windows.
        first_row: The row of tiles to begin with.
        stop_row: The row of tiles to stop before; by default the grid's end.
        wanted: bool [tiles]; the others are not read, and come with neither patch nor problem.
    """
    columns = len(grid.lefts)
    asked = np.ones(len(grid), bool) if wanted is None else wanted
    used = np.flatnonzero(asked.reshape(-1, columns).any(axis=0))
    if not len(used):
        used = np.array([0])
    left, right = grid.lefts[used[0]], min(grid.lefts[used[-1]] + grid.tile_px[1], scene.size[1])
    band = _RollingRows(scene, left, right, most_rows=grid.tile_px[0])
    for number, row in enumerate(islice(grid.rows(), first_row, stop_row), start=first_row):
        indexes = range(number * columns, (number + 1) * columns)
        readable = asked[indexes.start : indexes.stop].any() and band.moved_to(row[0].top, row[0].bottom)
        for index, window in zip(indexes, row, strict=True):
            if not asked[index]:
                yield TileRead(index, window, None)
            elif readable:
                yield TileRead(index, window, band.cut(window))
            else:
                yield _tile_alone(scene, index, window)


def _tile_alone(scene: Scene, index: int, window: Window) -> TileRead:
    try:
        return TileRead(index, window, scene.read(window))
    except SceneError as error:
        return TileRead(index, window, None, str(error))


class _RollingRows:
    """The rows of a scene that the present row of tiles needs, whole blocks at a time, in one buffer."""

    def __init__(self, scene: Scene, left: int, right: int, *, most_rows: int) -> None:
        self._scene = scene
        self._left, self._right = left, right
        # Whole blocks are read and kept, unless GDAL's cache keeps the row of blocks that two bands share.
        block = 1 if scene.block_rows > TALLEST_BLOCK_ROWS or scene.caches_a_row_of_blocks else scene.block_rows
        self._block = block
        rows = min(scene.size[0], most_rows + block - 1)
        self._pixels = np.empty((rows, right - left, 3), np.uint8)
        self._valid = None if scene.gapless else np.empty((rows, right - left), bool)
        self._top = self._bottom = 0

    def moved_to(self, top: int, bottom: int) -> bool:
        """Hold the rows from `top` to `bottom` or the scene's end; return whether they could be read.

        `top` never falls from call to call.
        """
        height = self._scene.size[0]
        keep = max(0, self._bottom - top)
        if keep:
            first = top - self._top
            self._pixels[:keep] = self._pixels[first : first + keep]  # numpy copes with the overlap
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
        """Return a copy of a tile of the band; beyond the scene it is padded."""
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
