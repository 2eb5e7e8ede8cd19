"""Screen a scene before it is searched: bands of the screen -> journal -> selection of tiles."""

import math

import numpy as np

from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.row_journal import RowJournal
from deploy.scene.screen.decimated_scene import DecimatedScene
from deploy.scene.screen.screen_layout import NO_DATA, BandScores, ScreenLayout
from deploy.scene.screen.tile_selection import MAX_PASSED, TileSelection, everything, passed_fraction, select_tiles
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array
from ifkd.core.tiling import TileGrid


def layout_for(grid: TileGrid, settings: DetectionSettings, selected: Array | None) -> ScreenLayout | None:
    """Return the layout of the screen on the tiles of a scene, `selected` those of an area of interest; None if off.

    The margin of a tile is that of the calibration: so a detection touches no skipped tile if each of its points has a
    cell within the margin that reaches the threshold (see `ifkd.imagery.objectness.kept_up_to`).
    """
    screen = settings.screen
    if screen is None:
        return None
    factor = 1.0 / (screen.scale * settings.scale)
    return ScreenLayout(grid, screen, factor, math.ceil(screen.margin_px / settings.scale), selected)


def screen_scene(
    executor: SceneExecutor, scene: Scene, layout: ScreenLayout, journal: RowJournal | None
) -> TileSelection:
    """Screen a scene, except for the bands of the journal, and return the selection of its tiles.

    A screen that may switch itself off does so after its first bands if they show that it is not worthwhile.
    """
    collected = _Scores(layout, journal)
    probed, settings = layout.probed, layout.settings
    if settings.auto and probed:
        executor.screen(scene, layout, collected.missing(probed), put=collected.put)
        if collected.passed_fraction(frozenset(probed)) > MAX_PASSED:
            return everything(layout)
    executor.screen(scene, layout, collected.missing(layout.bands), put=collected.put)
    with DecimatedScene(scene, layout.factor) as decimated:
        reduction = decimated.reduction
    return select_tiles(collected.scores(), layout, name=scene.info.name, reduction=reduction)


class _Scores:
    """Scores of tiles, the largest of all bands; those of the journal count as screened."""

    def __init__(self, layout: ScreenLayout, journal: RowJournal | None) -> None:
        self._layout, self._journal = layout, journal
        self._scores = np.full((2, len(layout.grid.tops), len(layout.grid.lefts)), NO_DATA, np.float32)
        self._done: set[int] = set()
        for one in journal.bands() if journal is not None else ():
            self._add(one)

    def scores(self) -> Array:
        """Return the scores of all tiles, float32 [tiles]."""
        return self._layout.joined_scores(self._scores)

    def put(self, band: BandScores) -> None:
        """Add the scores of a band; on return, they are in the journal."""
        if self._journal is not None:
            self._journal.append_band(band)
        self._add(band)

    def missing(self, bands: tuple[int, ...]) -> tuple[int, ...]:
        """Return the bands without scores."""
        return tuple(band for band in bands if band not in self._done)

    def passed_fraction(self, bands: frozenset[int]) -> float:
        """Return the fraction of passed tiles in the rows of tiles that these bands show; the others may add to it."""
        layout, rows = self._layout, self._layout.known_rows(bands)
        selected = np.repeat(rows, len(layout.grid.lefts))
        if layout.selected is not None:
            selected &= layout.selected
        return passed_fraction(self.scores(), layout.settings.threshold, selected)

    def _add(self, band: BandScores) -> None:
        rows = self._scores[:, band.first_row : band.first_row + band.scores.shape[1]]
        np.maximum(rows, band.scores, out=rows)
        self._done.add(band.band)
