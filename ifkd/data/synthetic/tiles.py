"""Tiles cut from imaginary places: which windows, their pictures and their truth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.annotation import coco_annotation
from ifkd.data.synthetic.config import SPLITS
from ifkd.data.synthetic.painters import AnySynthetic, painter_of

PLACE_TILES = 4
"""A place is this many tiles wide and high."""
CANDIDATES = 60


@dataclass(frozen=True, slots=True)
class Place:
    """One imaginary place and the tiles to cut from it."""

    split: str
    number: int
    first_tile: int
    """Number of its first tile within the split."""
    tiles: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A written tile."""

    file_name: str
    annotations: tuple[dict[str, Any], ...]


def places(config: AnySynthetic) -> list[Place]:
    """Return all places of all splits."""
    found = []
    for split in SPLITS:
        total, per_place = getattr(config.images, split), config.images.per_place
        for number, first in enumerate(range(0, total, per_place)):
            found.append(Place(split, number, first, min(per_place, total - first)))
    return found


def write_place(config: AnySynthetic, place: Place, folder: Path) -> list[Tile]:
    """Paint the tiles of a place into `folder` as PNG, and return them."""
    key = (1 + SPLITS.index(place.split), place.number)
    side = PLACE_TILES * config.tile_px
    objects = round(config.per_tile * config.images.per_place * 1.4)
    painter = painter_of(config, place=key, size_px=(side, side), objects=objects, wide=False)
    rng = np.random.default_rng([config.seed, *key, 1])
    tiles = []
    for index, window in enumerate(choose_windows(config, painter.boxes, place.tiles, rng)):
        name = f"{place.split}_{place.first_tile + index:05d}.png"
        Image.fromarray(_picture(painter.paint(window))).save(folder / name, compress_level=4)
        truths = painter.truths(window)
        annotations = tuple(coco_annotation(truth, config.class_names.index(truth.kind) + 1) for truth in truths)
        tiles.append(Tile(name, annotations))
    return tiles


def _picture(pixels: Array) -> Array:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def choose_windows(config: AnySynthetic, boxes: Array, number: int, rng: np.random.Generator) -> list[Window]:
    """Return windows that do not overlap and show about as many of the objects' boxes as wished, few of them cut."""
    side, tile = PLACE_TILES * config.tile_px, config.tile_px
    chosen: list[Window] = []
    for _ in range(number):
        corners = rng.integers(0, side - tile + 1, (CANDIDATES, 2))
        if len(boxes) and rng.random() >= config.anywhere_share:
            anchors = boxes[rng.integers(len(boxes), size=CANDIDATES // 2)]
            middles = (anchors[:, :2] + anchors[:, 2:])[:, ::-1] / 2
            near = middles - rng.uniform(0.25, 0.75, middles.shape) * tile
            corners[: len(near)] = near.astype(np.int64).clip(0, side - tile)
            wanted = min(1 + rng.poisson(config.per_tile - 1), 10) if config.per_tile > 1 else 1
            costs = [_cost(boxes, corner, tile, int(wanted)) for corner in corners]
            corners = corners[np.argsort(costs, kind="stable")]
        free = [corner for corner in corners if _is_free(corner, chosen, tile)]
        top, left = free[0] if free else _any_free(chosen, tile, side)
        chosen.append(Window(int(top), int(left), tile, tile))
    return chosen


def _cost(boxes: Array, corner: Array, tile: int, wanted: int) -> float:
    top, left = corner
    x1, y1, x2, y2 = boxes.T
    touching = (x1 < left + tile) & (x2 > left) & (y1 < top + tile) & (y2 > top)
    whole = (x1 >= left) & (x2 <= left + tile) & (y1 >= top) & (y2 <= top + tile)
    return abs(int(whole.sum()) - wanted) + 0.5 * int((touching & ~whole).sum())


def _is_free(corner: Array, chosen: list[Window], tile: int) -> bool:
    top, left = corner
    return all(abs(top - other.top) >= tile or abs(left - other.left) >= tile for other in chosen)


def _any_free(chosen: list[Window], tile: int, side: int) -> tuple[int, int]:
    """Return a free place found by trying all on a coarse raster, or the first corner if there is none."""
    for top in range(0, side - tile + 1, max(1, tile // 8)):
        for left in range(0, side - tile + 1, max(1, tile // 8)):
            if _is_free(np.array([top, left]), chosen, tile):
                return top, left
    return 0, 0
