"""Tiles cut from imaginary places: their windows, images and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import SPLITS, AnySynthetic
from ifkd.data.synthetic.labels import LabeledImage
from ifkd.data.synthetic.painters import painter_of

PLACE_TILES = 4  # Width and height of a place in tiles
STEPS = 8  # Positions of a window per tile, in both directions
SPARE = 1.4  # Objects of a place against those that its tiles are meant to show
MISSED = 8.0  # Cost of a window without the object that a tile is to show; one whole box too few or too many costs 1


@dataclass(frozen=True, slots=True)
class TilePlace:
    """One imaginary place and the tiles to cut from it."""

    split: str
    number: int
    first_tile: int
    tiles: int


def tile_places(config: AnySynthetic) -> list[TilePlace]:
    """Return all places of all splits."""
    per_place = config.images.per_place
    return [
        TilePlace(split, number, first, min(per_place, total - first))
        for split in SPLITS
        for total in [getattr(config.images, split)]
        for number, first in enumerate(range(0, total, per_place))
    ]


def write_place(config: AnySynthetic, folder: Path, place: TilePlace) -> list[LabeledImage]:
    """Paint the tiles of a place into `folder` as PNG, and return their names and labels."""
    traits, key = config.traits, (1 + SPLITS.index(place.split), place.number)
    side = PLACE_TILES * config.tile_px
    objects = round(traits.per_tile * config.images.per_place * SPARE)
    painter = painter_of(config, place=key, size_px=(side, side), objects=objects, wide=False)
    tiles: list[LabeledImage] = []
    windows = choose_windows(config, painter.boxes, place.tiles, [config.seed, *key, 1])
    for number, window in enumerate(windows, start=place.first_tile):
        name, pixels = f"{place.split}_{number:05d}.png", painter.paint(window)
        Image.fromarray(pixels[..., 0] if traits.bands == 1 else pixels).save(folder / name, compress_level=4)
        tiles.append((name, painter.labels(window)))
    return tiles


def choose_windows(config: AnySynthetic, boxes: Array, number: int, seed: Sequence[int]) -> list[Window]:
    """Return windows that do not overlap, most of them with about as many whole boxes [n, 4] as intended.

    Where windows at any position leave no room for all, they are chosen from the PLACE_TILES² of a grid.
    """
    anywhere = np.indices(((PLACE_TILES - 1) * STEPS + 1,) * 2).reshape(2, -1).T * config.tile_px // STEPS  # top, left
    on_grid = np.indices((PLACE_TILES,) * 2).reshape(2, -1).T * config.tile_px
    chosen = _choose(anywhere, config, boxes, number, np.random.default_rng(seed))
    if len(chosen) < number:
        chosen = _choose(on_grid, config, boxes, number, np.random.default_rng(seed))
    return chosen


def _choose(corners: Array, config: AnySynthetic, boxes: Array, number: int, rng: np.random.Generator) -> list[Window]:
    """Return up to `number` windows that do not overlap, at some of the `corners` (top, left)."""
    traits, tile = config.traits, config.tile_px
    low, high = corners[:, None, ::-1], corners[:, None, ::-1] + tile
    inside = np.asarray(((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(axis=2))
    cut = ((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(axis=2) & ~inside
    free = np.ones(len(corners), bool)
    chosen = []
    for _ in range(number):
        costs = rng.uniform(0.0, 1.0, len(corners))
        if len(boxes) and rng.random() >= traits.anywhere:
            wanted = min(1 + rng.poisson(max(traits.per_tile - 1, 0.0)), 10)
            costs += np.abs(inside.sum(axis=1) - wanted) + 0.5 * cut.sum(axis=1)
            # Any object is shown with equal chance, so that harbors are not avoided.
            costs += MISSED * ~inside[:, rng.integers(len(boxes))]
        if not free.any():
            break
        best = int(np.argmin(np.where(free, costs, np.inf)))
        top, left = corners[best].tolist()
        chosen.append(Window(top, left, tile, tile))
        free &= (np.abs(corners - corners[best]) >= tile).any(axis=1)
    return chosen
