"""Decimated scene: a scene at the resolution of a screen, read from the overviews of the file where they are reliable.

Overviews are used only of a cloud optimized GeoTIFF, of which GDAL knows that it was not changed since it was written,
and only if they are averages: nearest neighbors, which some programs write, lose small objects. Other scenes are
reduced from their full resolution.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from deploy.scene.read.scene import Patch, Scene
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window

STRIP_PX, STRIPS = 32, 64
"""Height of the strips that are read at a time, pixels of the screen, and their number that is kept."""
CHECKED_PX, CHECKED_PLACES = 64, 3
"""Side of the windows in which an overview is compared with the full resolution, and their number per side."""
MAX_DEVIATION = 0.5
"""Largest deviation of an overview from the average, relative to that of the nearest neighbor."""
ROUNDING = 2.0
"""Deviation that rounding and compression explain, gray values."""


class DecimatedScene:
    """A scene reduced by `factor`; a context manager, which closes the overview but not the scene."""

    def __init__(self, scene: Scene, factor: float) -> None:
        self._scene, self._factor = scene, factor
        self._source = scene
        for level, size in reversed(list(enumerate(scene.overview_sizes))):
            if scene.size[0] / size[0] <= factor and scene.size[1] / size[1] <= factor:
                overview = scene.at_overview(level)
                if is_average(scene, overview):
                    self._source = overview
                    break
                overview.close()
        self._steps = tuple(factor * own / full for own, full in zip(self._source.size, scene.size, strict=True))
        # Bands of a screen overlap by their context, and are read one after the other.
        self._strip = lru_cache(maxsize=STRIPS)(self._read_strip)

    @property
    def reduction(self) -> float:
        """Scene pixels per pixel that is read: above 1 where an overview is used."""
        return self._scene.size[1] / self._source.size[1]

    def read(self, window: Window) -> Patch:
        """Return a window in pixels of the screen, padded beyond the scene.

        Raises:
            SceneError: The window is unreadable.
        """
        first, last = window.top // STRIP_PX, -(-window.bottom // STRIP_PX)
        strips = [self._strip(number, window.left, window.width) for number in range(first, last)]
        rows = slice(window.top - first * STRIP_PX, window.bottom - first * STRIP_PX)
        pixels, valid = (np.concatenate(parts)[rows] for parts in zip(*strips, strict=True))
        return Patch(pixels, valid)

    def _read_strip(self, number: int, left: int, width: int) -> tuple[Array, Array]:
        """Return the pixels and the validity of some columns of a strip of rows."""
        window = Window(number * STRIP_PX, left, STRIP_PX, width)
        (down, across) = self._steps
        # The filter reaches one pixel of the screen beyond the window.
        top, first = math.floor((window.top - 1) * down), math.floor((window.left - 1) * across)
        bottom, stop = math.ceil((window.bottom + 1) * down), math.ceil((window.right + 1) * across)
        patch = self._source.read(Window(top, first, bottom - top, stop - first))
        box = (
            window.left * across - first,
            window.top * down - top,
            window.right * across - first,
            window.bottom * down - top,
        )
        return _reduced(patch.pixels, window, box), _valid(patch.valid, window, box)

    def close(self) -> None:
        """Close the overview."""
        if self._source is not self._scene:
            self._source.close()

    def __enter__(self) -> "DecimatedScene":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reduced(pixels: Array, window: Window, box: tuple[float, float, float, float]) -> Array:
    """Return pixels resized with the filter of `ifkd.imagery.image_files.resize`."""
    size = (window.width, window.height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))


def _valid(valid: Array, window: Window, box: tuple[float, float, float, float]) -> Array:
    """Return which pixels see a pixel with data. Of a rectangle with data, rows and columns are resized alone."""
    rows: Array = np.any(valid, axis=1)
    columns: Array = np.any(valid, axis=0)
    if np.count_nonzero(valid) != np.count_nonzero(rows) * np.count_nonzero(columns):
        return _reduced(valid.astype(np.uint8) * 255, window, box) > 0
    across = _reduced(columns[None].astype(np.uint8) * 255, replace(window, height=1), (box[0], 0.0, box[2], 1.0)) > 0
    down = _reduced(rows[:, None].astype(np.uint8) * 255, replace(window, width=1), (0.0, box[1], 1.0, box[3])) > 0
    seen: Array = down & across
    return seen


def is_average(scene: Scene, overview: Scene) -> bool:
    """Return whether an overview is nearer to the average of the scene's pixels than their nearest neighbors are."""
    deviations = [np.zeros((0, 2))]
    for window in _checked_windows(overview.size):
        try:
            own, average, nearest = _views(scene, overview, window)
        except SceneError:
            continue
        deviations.append(np.stack([own - average, nearest - average], axis=-1).reshape(-1, 2))
    squares = np.concatenate(deviations) ** 2
    if not len(squares):
        return False
    of_overview, of_nearest = np.sqrt(squares.mean(axis=0)).tolist()
    return of_overview <= ROUNDING + MAX_DEVIATION * of_nearest


def _checked_windows(size: tuple[int, int]) -> Iterator[Window]:
    height, width = min(CHECKED_PX, size[0]), min(CHECKED_PX, size[1])
    for top in np.linspace(0, size[0] - height, CHECKED_PLACES).astype(int).tolist():
        for left in np.linspace(0, size[1] - width, CHECKED_PLACES).astype(int).tolist():
            yield Window(top, left, height, width)


def _views(scene: Scene, overview: Scene, window: Window) -> tuple[Array, Array, Array]:
    """Return a window of an overview, float [n, 3], where it has data; and that of the scene, averaged and sampled."""
    down, across = (full / own for full, own in zip(scene.size, overview.size, strict=True))
    top, left = round(window.top * down), round(window.left * across)
    part = Window(top, left, round(window.bottom * down) - top, round(window.right * across) - left)
    own, full = overview.read(window), scene.read(part)
    size = (window.width, window.height)
    average, nearest = (
        np.asarray(Image.fromarray(full.pixels).resize(size, one), np.float64)
        for one in (Image.Resampling.BOX, Image.Resampling.NEAREST)
    )
    whole = np.asarray(Image.fromarray(full.valid.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) == 255
    known = own.valid & whole
    return own.pixels[known].astype(np.float64), average[known], nearest[known]
