"""Tiles of a recipe's images, one per image, for parity checks and INT8 quantization."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ifkd import recipe
from ifkd.core.detections import Array, box_areas, resize_boxes
from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import resize as resize_oriented
from ifkd.core.oriented_boxes import translate
from ifkd.data.coco import LabeledImage
from ifkd.data.oriented_labels import boxes_of_parts, cut_boxes
from ifkd.data.splits import read_split
from ifkd.imagery.image_files import pad, read_image, resize
from ifkd.imagery.image_tiles import scaled_size

SAMPLE_TILES = 8
"""Number of tiles of a parity check."""
NOISE_SEED = 7
MIN_VISIBILITY = 0.4
"""Objects of which a smaller fraction is inside the tile are ignored, as in training."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledTiles:
    """One tile of each image, with its objects."""

    pixels: Array
    """uint8 [tiles, 3, height, width], RGB."""
    images: tuple[LabeledImage, ...]
    """The tiles as images: boxes are cut at the border of the tile, and mostly hidden objects are ignored."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleTiles:
    """Tiles for a parity check."""

    pixels: Array
    """uint8 [tiles, 3, height, width], RGB."""
    source: str
    """Description for the manifest."""

    @classmethod
    def of_validation(cls, pixels: Array) -> "SampleTiles":
        """Return tiles of the validation split as sample tiles."""
        return cls(pixels, f"{len(pixels)} tiles of the validation split")


def read_tiles(images: Sequence[LabeledImage], data: recipe.DataOptions) -> LabeledTiles:
    """Return one tile of each image, scaled and padded as in training, around its first object or else at its corner.

    Raises:
        DataError: An image cannot be read.
    """
    size = (data.tile_px, data.tile_px)
    cut = [_cut_tile(image, data, size) for image in images]
    return LabeledTiles(_stack([pixels for pixels, _ in cut], size), tuple(labeled for _, labeled in cut))


def sample_tiles(data: recipe.DataOptions, *, count: int = SAMPLE_TILES) -> SampleTiles:
    """Return one tile of each of the first validation images, or noise if the images cannot be read."""
    try:
        tiles = read_tiles(read_split(data, "validation").images[:count], data)
        if tiles.images:
            return SampleTiles.of_validation(tiles.pixels)
        reason = "the validation split is empty"
    except DataError as error:
        reason = f"the validation images cannot be read ({error})"
    size = (data.tile_px, data.tile_px)
    noise = [structured_noise(size, seed=NOISE_SEED + index) for index in range(count)]
    return SampleTiles(_stack(noise, size), f"{count} tiles of seeded noise, because {reason}")


def structured_noise(size: tuple[int, int], *, seed: int) -> Array:
    """Return uint8 [height, width, 3]: noise of several frequencies with rectangles, so that scores and boxes vary."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*size, 3))
    cells = 2
    while cells <= min(size):
        total += resize(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8), size)
        cells *= 4
    pixels = ((total - total.min()) * (200 / max(np.ptp(total), 1.0))).astype(np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, size[0] * 3 // 4), rng.integers(0, size[1] * 3 // 4)
        height, width = rng.integers(4, max(5, size[0] // 4)), rng.integers(4, max(5, size[1] // 4))
        pixels[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return pixels


def _cut_tile(image: LabeledImage, data: recipe.DataOptions, size: tuple[int, int]) -> tuple[Array, LabeledImage]:
    """Return a tile, uint8 [height, width, 3], and its objects."""
    scaled = scaled_size(image.size, data.scale)
    pixels = resize(read_image(image.path, size=image.size, imagery=data.imagery), scaled)
    boxes = resize_boxes(image.boxes, image.size, scaled)
    top = left = 0
    if len(boxes):
        x1, y1, x2, y2 = boxes[0]
        top = int(np.clip((y1 + y2) / 2 - size[0] / 2, 0, max(0, pixels.shape[0] - size[0])))
        left = int(np.clip((x1 + x2) / 2 - size[1] / 2, 0, max(0, pixels.shape[1] - size[1])))
    tile = pad(pixels[top : top + size[0], left : left + size[1]], size)
    boxes -= np.array([left, top] * 2, np.float32)
    clipped = boxes.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    visibility = box_areas(clipped) / np.maximum(box_areas(boxes), 1e-6)
    oriented = None
    if image.oriented is not None:
        moved = translate(resize_oriented(image.oriented, image.size, scaled), dx=float(-left), dy=float(-top))
        cut = cut_boxes(moved, size)
        oriented, clipped = cut.oriented, boxes_of_parts(clipped, cut)
        visibility = np.where(np.isnan(cut.visible), visibility, cut.visible)
    inside = visibility > 0
    ignore = (image.ignore | (visibility < MIN_VISIBILITY))[inside]
    shown, turned = clipped[inside].astype(np.float32), None if oriented is None else oriented[inside]
    return tile, replace(image, size=size, boxes=shown, labels=image.labels[inside], ignore=ignore, oriented=turned)


def _stack(tiles: Sequence[Array], size: tuple[int, int]) -> Array:
    """Return tiles [height, width, 3] as uint8 [tiles, 3, height, width]."""
    stacked = np.array(tiles, np.uint8).reshape(-1, *size, 3)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
