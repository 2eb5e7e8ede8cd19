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
    patches = [reader.submit(_read, decimated, layout.pixels_of(rows, columns)) for columns in pieces[:1]]
    for number, (left, right) in enumerate(pieces):
        patches += [
            reader.submit(_read, decimated, layout.pixels_of(rows, one)) for one in pieces[number + 1 : number + 2]
        ]
        patch = patches.pop(0).result()
        if patch is None:
            cells[:, left:right] = UNREADABLE
        elif (known := _core(_any_valid(patch.valid, layout), layout)).any():
            values = _core(network.objectness(patch.pixels), layout)
            cells[:, left:right] = np.where(known, values, NO_DATA)
    return cells


def _read(decimated: DecimatedScene, window: Window) -> Patch | None:
    try:
        return decimated.read(window)
    except SceneError:  # reading the tiles reports it
        return None


def _any_valid(valid: Array, layout: ScreenLayout) -> Array:
    """Return which cells have data, bool [rows, columns]."""
    stride = layout.settings.stride
    height, width = valid.shape
    return np.any(valid.reshape(height // stride, stride, width // stride, stride), axis=(1, 3))


def _core(cells: Array, layout: ScreenLayout) -> Array:
    """Return cells without those of the context."""
    context = layout.context_cells
    return cells[context : cells.shape[0] - context, context : cells.shape[1] - context]
