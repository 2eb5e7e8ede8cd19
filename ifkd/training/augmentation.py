"""Random augmentation of training images. Each function draws from the generator in a fixed order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ifkd.core.detections import Array, box_areas
from ifkd.core.oriented_boxes import canonical, translate
from ifkd.data.oriented_labels import boxes_of_parts, cut_boxes
from ifkd.imagery.image_files import pad
from ifkd.recipe import AugmentationOptions

MIN_VISIBLE_FRACTION = 0.4
"""Minimum visible fraction of a cropped object's area; objects below it become ignored regions."""
OBJECT_CROP_PROBABILITY = 0.75
"""Probability that a crop is placed around an object, because most crops of large scenes contain none."""
MIN_SPECKLE_STD = 1e-3
"""Standard deviation below which speckle changes no uint8 value, and the gamma distribution is ill-conditioned."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledPixels:
    """An image and its boxes, which augmentation moves together."""

    pixels: Array
    """[height, width, 3]."""
    boxes: Array
    """float32 [n, 4], x1 y1 x2 y2, pixels."""
    oriented: Array | None = None
    """float32 [n, 5], as in `ifkd.core.oriented_boxes`, NaN for a box that has none; None for an upright detector."""


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A tile of an image, with all boxes of the image, cut at the border of the tile."""

    image: LabeledPixels
    is_object: Array
    """bool [n], objects of the tile; only their boxes, and those of ignored regions, have a meaning."""
    is_ignored: Array
    """bool [n], ignored regions of the tile."""


def flip_and_rotate(image: LabeledPixels, options: AugmentationOptions, rng: np.random.Generator) -> LabeledPixels:
    """Return an image and its boxes after a random flip and quarter turn that the options allow."""
    transpose, flip_x, flip_y = rng.random(3) < 0.5
    if not options.flip:
        flip_y = transpose ^ flip_x  # a rotation is an even number of reflections
    if not options.quarter_turns:
        transpose = False
    if not (options.flip or options.quarter_turns):
        flip_x = flip_y = False
    if transpose:
        image = _transposed(image)
    if flip_x:
        image = _flipped(image, 0)
    if flip_y:
        image = _flipped(image, 1)
    return image


def _transposed(image: LabeledPixels) -> LabeledPixels:
    oriented = image.oriented
    if oriented is not None:
        x, y, length, width, angle = oriented.T
        oriented = canonical(np.stack([y, x, length, width, 90 - angle], axis=1))
    return LabeledPixels(image.pixels.transpose(1, 0, 2), image.boxes[:, [1, 0, 3, 2]], oriented)


def _flipped(image: LabeledPixels, axis: int) -> LabeledPixels:
    """Return an image flipped along x (axis 0) or y (axis 1)."""
    pixels, boxes, oriented = np.flip(image.pixels, 1 - axis), image.boxes.copy(), image.oriented
    side = pixels.shape[1 - axis]
    boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    if oriented is not None:
        oriented = oriented.copy()
        oriented[:, axis], oriented[:, 4] = side - oriented[:, axis], -oriented[:, 4]
        oriented = canonical(oriented)
    return LabeledPixels(pixels, boxes, oriented)


def crop(image: LabeledPixels, ignore: Array, tile_px: int, rng: np.random.Generator) -> Crop:
    """Crop an image to a random tile with sides of `tile_px`, and pad a smaller image.

    `ignore` [n] marks boxes of regions to ignore. The visible fraction of an object is that of its oriented box where
    it has one, else that of its upright box.
    """
    height, width = image.pixels.shape[:2]
    max_top, max_left = max(0, height - tile_px), max(0, width - tile_px)
    top, left = (int(rng.integers(0, limit + 1)) for limit in (max_top, max_left))
    objects = np.flatnonzero(~ignore)
    if max(max_top, max_left) and len(objects) and rng.random() < OBJECT_CROP_PROBABILITY:
        x1, y1, x2, y2 = image.boxes[rng.choice(objects)].tolist()
        top = _crop_start(y1, y2, tile_px, max_top, rng)
        left = _crop_start(x1, x2, tile_px, max_left, rng)
    pixels = pad(image.pixels[top : top + tile_px, left : left + tile_px], (tile_px, tile_px))
    shifted = image.boxes - np.array([left, top, left, top], np.float32)
    boxes, oriented = shifted.clip(0, tile_px).astype(np.float32), image.oriented
    visible = box_areas(boxes) / np.maximum(box_areas(shifted), 1e-6)
    if oriented is not None:
        cut = cut_boxes(translate(oriented, dx=float(-left), dy=float(-top)), (tile_px, tile_px))
        boxes, oriented = boxes_of_parts(boxes, cut), cut.oriented
        visible = np.where(np.isnan(cut.visible), visible, cut.visible * (box_areas(boxes) > 0))
    is_object = (visible >= MIN_VISIBLE_FRACTION) & ~ignore
    return Crop(LabeledPixels(pixels, boxes, oriented), is_object, (visible > 0) & ~is_object)


def _crop_start(low: float, high: float, tile_px: int, limit: int, rng: np.random.Generator) -> int:
    """Return a start in [0, limit] of a crop that contains [low, high], or that is inside it where it is larger."""
    first, last = sorted((int(high) - tile_px, int(low)))
    return int(np.clip(rng.integers(first, last + 1), 0, limit))


def color_jitter(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Return a tile with random brightness, contrast and saturation, each a factor of 1 - strength to 1 + strength."""
    if strength == 0:
        return pixels
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    pixels = functional.adjust_contrast(functional.adjust_brightness(pixels, brightness), contrast)
    return functional.adjust_saturation(pixels, saturation)


def add_speckle(pixels: Tensor, max_std: float, rng: np.random.Generator) -> Tensor:
    """Return a tile with SAR speckle: times gamma noise of mean 1 and of a random deviation up to `max_std`."""
    if max_std == 0:
        return pixels
    std = max(float(rng.uniform(0.0, max_std)), MIN_SPECKLE_STD)
    noise = rng.standard_gamma(std**-2, pixels.shape[1:], dtype=np.float32) * np.float32(std**2)
    return (pixels * torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)
