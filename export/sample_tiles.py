"""Tiles to compare two runtimes on: of the recipe's validation images, or structured noise where these are absent."""

from dataclasses import dataclass, replace

import numpy as np

from ifkd import recipe
from ifkd.core.detections import Array, box_areas
from ifkd.core.errors import DataError
from ifkd.data.coco import LabeledImage
from ifkd.data.splits import read_split
from ifkd.imagery.image_files import pad, read_image, resize

DEFAULT_COUNT = 8
NOISE_SEED = 7
VISIBLE_SHARE = 0.4
"""An object cut by a tile counts when this share of its area is in it, as in training."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleTiles:
    """Tiles and where they came from."""

    tiles: Array
    """uint8 [tiles, 3, height, width], RGB."""
    source: str
    """For the manifest, in words."""


def sample_tiles(data: recipe.DataOptions, *, count: int = DEFAULT_COUNT) -> SampleTiles:
    """Return one tile of each of the first validation images, around its first object where it has one.

    Where the recipe's images cannot be read, seeded noise stands in, and `source` says why.
    """
    size = (data.tile_px, data.tile_px)
    try:
        images = read_split(data, "validation").images[:count]
        tiles = [cut_tile(image, data, size).pixels for image in images]
        reason = "" if tiles else "the validation split is empty"
    except DataError as error:
        tiles, reason = [], f"the validation images cannot be read ({error})"
    source = f"{len(tiles)} tiles of the validation split"
    if reason:
        tiles = [structured_noise(size, seed=NOISE_SEED + index) for index in range(count)]
        source = f"{count} tiles of seeded noise, as {reason}"
    return SampleTiles(np.ascontiguousarray(np.stack(tiles).transpose(0, 3, 1, 2)), source)


def structured_noise(size: tuple[int, int], *, seed: int) -> Array:
    """Return uint8 [height, width, 3]: noise of all sizes with bars on it, so that a detector has what to answer."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*size, 3))
    cells = 2
    while cells <= min(size):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += resize(coarse, size)
        cells *= 4
    span = np.ptp(total)
    pixels = ((total - total.min()) * (200 / max(span, 1.0))).astype(np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, size[0] * 3 // 4), rng.integers(0, size[1] * 3 // 4)
        height, width = rng.integers(4, max(5, size[0] // 4)), rng.integers(4, max(5, size[1] // 4))
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return pixels


@dataclass(frozen=True, slots=True, eq=False)
class CutTile:
    """A tile of an image and what is labeled in it."""

    pixels: Array
    """uint8 [height, width, 3]."""
    labeled: LabeledImage
    """The tile as an image of its own: boxes cut to it; an object of which little is left counts as ignored."""


def cut_tile(image: LabeledImage, data: recipe.DataOptions, size: tuple[int, int]) -> CutTile:
    """Return the tile around an image's first object, or its first corner where it has none, scaled and padded.

    Raises:
        DataError: The image cannot be read.
    """
    scale = data.scale
    pixels = read_image(image.path, imagery=data.imagery)
    pixels = resize(pixels, (round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)))
    start = [0, 0]
    if len(image.boxes):
        x1, y1, x2, y2 = image.boxes[0] * scale
        for axis, middle in enumerate(((y1 + y2) / 2, (x1 + x2) / 2)):
            start[axis] = int(np.clip(middle - size[axis] / 2, 0, max(0, pixels.shape[axis] - size[axis])))
    tile = pad(pixels[start[0] : start[0] + size[0], start[1] : start[1] + size[1]], size)
    whole = image.boxes * np.float32(scale) - np.array([start[1], start[0]] * 2, np.float32)
    boxes = whole.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    share = box_areas(boxes) / np.maximum(box_areas(whole), 1e-6)
    seen = share > 0
    labeled = replace(
        image,
        size=size,
        boxes=boxes[seen].astype(np.float32),
        labels=image.labels[seen],
        ignore=(image.ignore | (share < VISIBLE_SHARE))[seen],
    )
    return CutTile(tile, labeled)
