"""Layout of a screen on a scene: its pixels, its cells, and the tiles that each cell lets pass.

A pixel of the screen is `factor` scene pixels wide, and a cell is `stride` of those. Cells form one grid over the
scene, so neighboring tiles agree about the cells that they share. The scene is screened band by band; a band is a
number of complete rows of cells, which the network sees with their context.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deploy.scene.settings import ScreenSettings
from ifkd.core.detections import Array
from ifkd.core.tiling import TileGrid, Window

BAND_PX = 512
"""Largest height of a band, pixels of the screen."""
PIECE_PX = 2048
"""Width of the parts of a band that pass through the network one after the other, pixels of the screen."""
PROBED = 4
"""One band in this many is screened first; if almost all of its tiles pass, the rest is not screened."""
NO_DATA, UNREADABLE = -1.0, np.inf
"""Values of cells without data, and of cells that cannot be read. Tiles without other cells are passed on."""


@dataclass(frozen=True, slots=True, eq=False)
class BandScores:
    """Largest values of the cells of one band, by tile."""

    band: int
    first_row: int
    """First row of tiles that touches the band."""
    scores: Array
    """float32 [2, rows of tiles, columns]: of a tile with its margin, and of the tile alone."""


@dataclass(frozen=True, slots=True, eq=False)
class ScreenLayout:
    """Cells of a screen over the tiles of a scene."""

    grid: TileGrid
    settings: ScreenSettings
    factor: float
    """Scene pixels per pixel of the screen."""
    margin_px: int
    """A tile passes if a cell within this distance of it does, scene pixels."""
    selected: Array | None
    """bool [tiles]: tiles in the area of interest; None for all."""

    @property
    def cell_px(self) -> float:
        """Side of a cell, scene pixels."""
        return self.settings.stride * self.factor

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands with tiles of the area of interest; those that are screened first come first."""
        rows = self._rows_of_cells()
        used = np.flatnonzero(self._selected().any(axis=1))
        touched = {band for row in used.tolist() for band in self._bands_of(*rows[row])}
        probed = [band for band in sorted(touched) if band % PROBED == PROBED // 2]
        return (*probed, *sorted(touched - set(probed)))

    @property
    def probed(self) -> tuple[int, ...]:
        """Bands that are screened first."""
        return tuple(band for band in self.bands if band % PROBED == PROBED // 2)

    @property
    def columns(self) -> int:
        """Columns of cells."""
        return self._cells(self.grid.size[1])

    @property
    def band_cells(self) -> int:
        """Rows of cells in a band: those of a small scene are as tall as a tile."""
        rows = max(self.grid.tile_px[0], self.grid.size[0] / PROBED) / self.cell_px
        return max(1, min(BAND_PX // self.settings.stride, math.ceil(rows)))

    def rows_of(self, band: int) -> tuple[int, int]:
        """Return the rows of cells of a band, from the first to the one after the last."""
        return band * self.band_cells, min((band + 1) * self.band_cells, self._cells(self.grid.size[0]))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the columns of cells that pass through the network together, as far as tiles of the area touch them."""
        used = np.flatnonzero(self._selected().any(axis=0)).tolist()
        columns = self._columns_of_cells()
        first, stop, step = columns[used[0]][0], columns[used[-1]][1], max(1, PIECE_PX // self.settings.stride)
        for left in range(first, stop, step):
            yield left, min(left + step, stop)

    def pixels_of(self, rows: tuple[int, int], columns: tuple[int, int]) -> Window:
        """Return the pixels of the screen that cells depend on: their own and the context, a whole number of cells.

        The context ends with the scene, as that of a training image does.
        """
        stride, context = self.settings.stride, self.context_cells
        (top, bottom), (left, right) = (
            (max(0, one[0] - context), min(one[1] + context, self._cells(length)))
            for one, length in zip((rows, columns), self.grid.size, strict=True)
        )
        return Window(top * stride, left * stride, (bottom - top) * stride, (right - left) * stride)

    @property
    def context_cells(self) -> int:
        """Cells around a cell that its value depends on."""
        return math.ceil(self.settings.context_px / self.settings.stride)

    def tile_scores(self, band: int, cells: Array) -> BandScores:
        """Return the scores of tiles by the cells of a band, float32 [rows, all columns]."""
        top, bottom = self.rows_of(band)
        touching = [row for row, (first, stop) in enumerate(self._rows_of_cells()) if first < bottom and stop > top]
        scores = []
        for margin_px in (self.margin_px, 0):
            rows, columns = self._rows_of_cells(margin_px), self._columns_of_cells(margin_px)
            by_column = np.stack([cells[:, left:right].max(axis=1) for left, right in columns], axis=1)
            parts = [by_column[max(rows[row][0] - top, 0) : max(rows[row][1] - top, 0)] for row in touching]
            scores.append([part.max(axis=0, initial=NO_DATA) for part in parts])
        return BandScores(band, touching[0], np.array(scores, np.float32))

    def joined_scores(self, scores: Array) -> Array:
        """Return the scores of tiles, float32 [tiles], by those of all bands [2, rows, columns]."""
        return np.where(scores[1] < 0.0, np.float32(NO_DATA), scores[0]).ravel()

    def known_rows(self, bands: frozenset[int]) -> Array:
        """Return the rows of tiles of which at least half is in these bands, bool [rows of tiles]."""
        side = self.band_cells
        cells = [[cell // side in bands for cell in range(*row)] for row in self._rows_of_cells(0)]
        return np.array([2 * sum(row) >= len(row) for row in cells])

    def _selected(self) -> Array:
        shape = len(self.grid.tops), len(self.grid.lefts)
        return np.ones(shape, bool) if self.selected is None else self.selected.reshape(shape)

    def _bands_of(self, first: int, stop: int) -> range:
        return range(first // self.band_cells, -(-stop // self.band_cells))

    def _rows_of_cells(self, margin_px: int | None = None) -> list[tuple[int, int]]:
        return self._touched(self.grid.tops, self.grid.tile_px[0], self.grid.size[0], margin_px)

    def _columns_of_cells(self, margin_px: int | None = None) -> list[tuple[int, int]]:
        return self._touched(self.grid.lefts, self.grid.tile_px[1], self.grid.size[1], margin_px)

    def _touched(self, starts: list[int], side: int, length: int, margin_px: int | None) -> list[tuple[int, int]]:
        """Return the cells that each tile or its margin touches, along one axis."""
        margin = self.margin_px if margin_px is None else margin_px
        low = [max(0, math.floor((start - margin) / self.cell_px)) for start in starts]
        high = [math.ceil((min(start + side, length) + margin) / self.cell_px) for start in starts]
        return [(first, min(stop, self._cells(length))) for first, stop in zip(low, high, strict=True)]

    def _cells(self, length: int) -> int:
        return math.ceil(length / self.cell_px)
