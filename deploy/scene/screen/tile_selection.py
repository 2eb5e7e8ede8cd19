"""Selection of the tiles that are searched, by the scores of a screen."""

import math
import zlib
from dataclasses import dataclass

import numpy as np

from deploy.scene.screen.screen_layout import ScreenLayout
from ifkd.core.detections import Array

MAX_PASSED = 0.8
"""Largest fraction of passed tiles at which a screen that may switch itself off stays on."""


@dataclass(frozen=True, slots=True, eq=False)
class TileSelection:
    """Tiles that a screen skips, and those of them that are searched to estimate the loss."""

    skipped: Array
    """bool [tiles]: tiles whose detections are not in the result."""
    audited: Array
    """bool [tiles]: skipped tiles that are searched all the same."""
    passed: int
    """Tiles of the area of interest that pass, among them those without data or that cannot be read."""
    is_on: bool = True
    """Whether the screen skips tiles; False if it lets too many pass to be worthwhile."""
    reduction: float = 1.0
    """Scene pixels per pixel that the screen read: above 1 with overviews of the file."""

    @property
    def searched(self) -> Array:
        """The tiles that pass through the engine, bool [tiles]."""
        return ~self.skipped | self.audited

    @property
    def unsearched(self) -> int:
        """Number of tiles that do not pass through the engine."""
        return int((~self.searched).sum())


def passed_fraction(scores: Array, threshold: float, selected: Array) -> float:
    """Return the fraction of tiles that pass, of those with data in the area of interest; 0 without any."""
    known = selected & (scores >= 0.0) & np.isfinite(scores)
    return float((scores[known] >= threshold).mean()) if known.any() else 0.0


def select_tiles(scores: Array, layout: ScreenLayout, *, name: str, reduction: float = 1.0) -> TileSelection:
    """Return the selection of tiles by their scores, float32 [tiles], in the scene `name`.

    Tiles without data or that cannot be read pass, so that they are reported as in a search of all tiles.
    """
    settings, tiles = layout.settings, len(layout.grid)
    selected = np.ones(tiles, bool) if layout.selected is None else layout.selected
    if settings.auto and passed_fraction(scores, settings.threshold, selected) > MAX_PASSED:
        return everything(layout)
    skipped = selected & (scores >= 0.0) & (scores < settings.threshold)
    audited = np.zeros(tiles, bool)
    index = np.flatnonzero(skipped)
    count = math.ceil(settings.audit_fraction * len(index))
    random = np.random.default_rng([settings.audit_seed, zlib.crc32(name.encode())])
    audited[random.choice(index, count, replace=False)] = True
    return TileSelection(skipped, audited, int(selected.sum() - skipped.sum()), reduction=reduction)


def everything(layout: ScreenLayout) -> TileSelection:
    """Return the selection of a screen that switched itself off."""
    tiles = len(layout.grid)
    passed = tiles if layout.selected is None else int(layout.selected.sum())
    return TileSelection(np.zeros(tiles, bool), np.zeros(tiles, bool), passed, is_on=False)
