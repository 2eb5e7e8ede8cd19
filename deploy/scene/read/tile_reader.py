"""Read the tiles of a scene row by row, so that every block of the file is decoded once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np

from deploy.scene.read.row_scaler import RowScaler
from deploy.scene.read.scene import Patch, Scene
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.contrast import PADDING_RGB
from ifkd.imagery.image_files import resize

TALLEST_BLOCK_ROWS = 1024
"""Taller blocks, such as one strip for the entire file, are not read completely in advance."""
SECTION_PX = 512
"""Least width of the columns of blocks of which only those of selected tiles are read."""


@dataclass(frozen=True, slots=True, eq=False)
class TileRead:
    """A tile as read from the scene."""

    index: int
    """Index in the grid, row by row."""
    window: Window
    patch: Patch | None
    """Resized pixels, and the valid pixels of the window; None for a tile that is unreadable or not selected."""
    problem: str | None = None
    """Reason why the tile is unreadable."""


def read_tiles(
    scene: Scene,
    grid: TileGrid,
    *,
    first_row: int = 0,
    stop_row: int | None = None,
    selected: Array | None = None,
    tile_px: tuple[int, int] | None = None,
    resizing: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[TileRead]:
    """Yield the tiles of a grid over a scene, row by row, from the row of tiles `first_row` up to `stop_row`.

    A row of tiles is cut from one buffer of scene rows, and the overlap with the next row stays in the buffer, so every
    strip or block of the file is decoded once, and a block of a tiled file only if a selected tile needs it. If the
    rows cannot be read together, their tiles are read one by one. Tiles that are not `selected`, bool [tiles], have
    neither patch nor problem. With `tile_px` (height, width), they are resized to it; see `RowScaler`. `resizing` is
    entered meanwhile.
    """
    columns = len(grid.lefts)
    tile_px = tile_px or grid.tile_px
    scaler = RowScaler(grid, tile_px)
    chosen = np.ones(len(grid), bool) if selected is None else selected
    buffer = _RowBuffer(scene, grid, margin_px=scaler.margin_px)
    empty = np.broadcast_to(np.array(PADDING_RGB, np.uint8), (*tile_px, 3))
    for number, row in enumerate(islice(grid.rows(), first_row, stop_row), start=first_row):
        of_row = chosen[number * columns : (number + 1) * columns]
        readable = of_row.any() and buffer.advance([one for one, taken in zip(row, of_row, strict=True) if taken])
        valid = [buffer.valid(one) if readable and taken else None for one, taken in zip(row, of_row, strict=True)]
        filled = [known is not None and known.any() for known in valid]
        resized = scaler.tiles(buffer, [one for one, has_data in zip(row, filled, strict=True) if has_data])
        for column, (window, known) in enumerate(zip(row, valid, strict=True)):
            index = number * columns + column
            if not of_row[column]:
                yield TileRead(index, window, None)
            elif known is None:
                yield _read_tile(scene, index, window, tile_px)
            else:
                with resizing():
                    pixels = next(resized) if filled[column] else empty
                yield TileRead(index, window, Patch(pixels, known))


def _read_tile(scene: Scene, index: int, window: Window, tile_px: tuple[int, int]) -> TileRead:
    """Read a tile of a row with unreadable parts; what is around the tile does not count."""
    try:
        patch = scene.read(window)
    except SceneError as error:
        return TileRead(index, window, None, str(error))
    return TileRead(index, window, Patch(resize(patch.pixels, tile_px), patch.valid))


class _RowBuffer:
    """Scene rows of the current row of tiles with a margin, as whole blocks, in the columns that selected tiles need.

    Columns of blocks are joined to sections, each of which is read down to a row of its own.
    """

    def __init__(self, scene: Scene, grid: TileGrid, *, margin_px: tuple[int, int]) -> None:
        self._scene, self._margin = scene, margin_px
        self._section = -(-SECTION_PX // scene.block_columns) * scene.block_columns
        # Complete blocks are read, unless GDAL's cache keeps the blocks that two rows of tiles have in common.
        one_row = scene.block_rows > TALLEST_BLOCK_ROWS or scene.caches_a_row_of_blocks
        self._block = 1 if one_row else scene.block_rows
        (height, width), rows = scene.size, grid.tile_px[0] + 2 * margin_px[0] + self._block - 1
        self._pixels = np.empty((min(height, rows), width, 3), np.uint8)
        self._valid = None if scene.gapless else np.empty(self._pixels.shape[:2], bool)
        self._top = 0
        self._bottoms = np.zeros(-(-width // self._section), int)

    def advance(self, windows: Sequence[Window]) -> bool:
        """Load the rows of windows, which are never above those before; False if they are unreadable."""
        (down, across), (height, width) = self._margin, self._scene.size
        top, bottom = max(0, windows[0].top - down), windows[0].bottom + down
        keep, first = max(0, int(self._bottoms.max()) - top), top - self._top
        for rows in (self._pixels, self._valid):
            if rows is not None:
                rows[:keep] = rows[first : first + keep]  # numpy handles overlapping slices
        self._top, self._bottoms = top, np.maximum(self._bottoms, top)
        stop = min(-(-bottom // self._block) * self._block, height)
        needed = np.zeros(len(self._bottoms), bool)
        for window in windows:
            last = min(window.right + across, width)
            needed[max(0, window.left - across) // self._section : -(-last // self._section)] = True
        for part in self._parts(needed & (self._bottoms < stop), stop):
            new = np.s_[part.top - top : part.bottom - top, part.left : part.right]
            try:
                self._scene.read_into(part, self._pixels[new], None if self._valid is None else self._valid[new])
            except SceneError:
                self._bottoms[:] = top
                return False
        self._bottoms[needed] = np.maximum(self._bottoms[needed], stop)
        return True

    def _parts(self, sections: Array, stop: int) -> Iterator[Window]:
        """Yield the unread rows of some sections down to a row; neighbors that begin at the same row are joined."""
        numbers = enumerate(np.flatnonzero(sections).tolist())
        for (top, _), group in groupby(numbers, key=lambda one: (int(self._bottoms[one[1]]), one[1] - one[0])):
            joined = [number for _, number in group]
            left, right = joined[0] * self._section, (joined[-1] + 1) * self._section
            yield Window(top, left, stop - top, min(right, self._scene.size[1]) - left)

    def pixels(self, window: Window) -> Array:
        """Return a window until the next row, uint8 [height, width, 3], with the padding color beyond the scene."""
        return self._padded(self._pixels, window, fill=PADDING_RGB)

    def valid(self, window: Window) -> Array:
        """Return a copy of the valid pixels of a window, bool [height, width]."""
        if self._valid is None:
            return self._padded(np.broadcast_to(np.True_, self._pixels.shape[:2]), window, fill=False)
        return self._padded(self._valid, window, fill=False).copy()

    def _padded(self, rows: Array, window: Window, *, fill: object) -> Array:
        height, width = self._scene.size
        part = rows[
            window.top - self._top : min(window.bottom, height) - self._top, window.left : min(window.right, width)
        ]
        if part.shape[:2] == (window.height, window.width):
            return part
        padded = np.empty((window.height, window.width, *rows.shape[2:]), rows.dtype)
        padded[: part.shape[0], : part.shape[1]] = part
        padded[part.shape[0] :], padded[: part.shape[0], part.shape[1] :] = fill, fill
        return padded
