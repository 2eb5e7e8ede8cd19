"""Run a screen on the bands of a scene: decimated pixels -> network -> scores of tiles."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from deploy.scene.read.scene import Patch, Scene
from deploy.scene.screen.decimated_scene import DecimatedScene
from deploy.scene.screen.screen_layout import NO_DATA, UNREADABLE, BandScores, ScreenLayout
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window


@runtime_checkable
class Objectness(Protocol):
    """A network that returns the objectness of cells; see `ScreenNetwork`."""

    def objectness(self, pixels: Array) -> Array:
        """Return float32 [rows, columns] of pixels uint8 [height, width, 3]."""


def screen_bands(
    network: Objectness, scene: Scene, layout: ScreenLayout, bands: Iterable[int], *, put: Callable[[BandScores], None]
) -> None:
    """Screen bands of a scene, one after the other; `put` receives the scores of each."""
    scene.decode_once()
    with DecimatedScene(scene, layout.factor) as decimated, ThreadPoolExecutor(1, "screen-reader") as reader:
        for band in bands:
            put(layout.tile_scores(band, _cells(network, decimated, layout, band, reader)))


def _cells(
    network: Objectness, decimated: DecimatedScene, layout: ScreenLayout, band: int, reader: ThreadPoolExecutor
) -> Array:
    """Return the cells of a band, float32 [rows, all columns]; while the network runs, the next part is read."""
    rows, width = layout.rows_of(band), layout.columns
    cells = np.full((rows[1] - rows[0], width), NO_DATA, np.float32)
    pieces = list(layout.pieces())
    windows = [layout.pixels_of(rows, columns) for columns in pieces]
    patches = [reader.submit(_read, decimated, window) for window in windows[:1]]
    for number, (left, right) in enumerate(pieces):
        patches += [reader.submit(_read, decimated, window) for window in windows[number + 1 : number + 2]]
        patch = patches.pop(0).result()
        if patch is None:
            cells[:, left:right] = UNREADABLE
            continue
        stride = layout.settings.stride
        top, first = rows[0] - windows[number].top // stride, left - windows[number].left // stride
        own = slice(top, top + len(cells)), slice(first, first + right - left)  # without the context
        if (known := _any_valid(patch.valid, stride)[own]).any():
            cells[:, left:right] = np.where(known, network.objectness(patch.pixels)[own], NO_DATA)
    return cells


def _read(decimated: DecimatedScene, window: Window) -> Patch | None:
    try:
        return decimated.read(window)
    except SceneError:  # reading the tiles reports it
        return None


def _any_valid(valid: Array, stride: int) -> Array:
    """Return which cells have data, bool [rows, columns]."""
    height, width = valid.shape
    return np.any(valid.reshape(height // stride, stride, width // stride, stride), axis=(1, 3))
