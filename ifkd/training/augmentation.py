"""Random augmentation of training images. Each function draws from the generator in a fixed order."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ifkd.core.detections import Array, box_areas
from ifkd.imagery.image_files import pad
from ifkd.recipe import AugmentationOptions

MIN_VISIBLE_FRACTION = 0.4
"""Minimum visible fraction of a cropped object's area; objects below it become ignored regions."""
OBJECT_CROP_PROBABILITY = 0.75
"""Probability that a crop is placed around an object, because most crops of large scenes contain none."""
MIN_SPECKLE_STD = 1e-3
"""Standard deviation below which speckle changes no uint8 value, and the gamma distribution is ill-conditioned."""


def flip_and_rotate(
    pixels: Array, boxes: Array, options: AugmentationOptions, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return an image [height, width, 3] and its boxes after a random flip and quarter turn that the options allow."""
    transpose, flip_x, flip_y = rng.random(3) < 0.5
    if not options.flip:
        flip_y = transpose ^ flip_x  # a rotation is an even number of reflections
    if not options.quarter_turns:
        transpose = False
    if not (options.flip or options.quarter_turns):
        flip_x = flip_y = False
    if transpose:
        pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    if flip_x:
        pixels, boxes = pixels[:, ::-1], _flip_boxes(boxes, 0, pixels.shape[1])
    if flip_y:
        pixels, boxes = pixels[::-1], _flip_boxes(boxes, 1, pixels.shape[0])
    return pixels, boxes


def _flip_boxes(boxes: Array, axis: int, length: int) -> Array:
    boxes = boxes.copy()
    boxes[:, [axis, axis + 2]] = length - boxes[:, [axis + 2, axis]]
    return boxes


def crop(
    pixels: Array, boxes: Array, ignore: Array, tile_px: int, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Crop an image [height, width, 3] to a random tile with sides of `tile_px`, and pad a smaller image.

    `boxes` is [n, 4], and `ignore` [n] marks boxes of regions to ignore. Returned are the tile, the boxes clipped to
    it, the mask [n] of its objects and the mask [n] of its ignored regions.
    """
    height, width = pixels.shape[:2]
    max_top, max_left = max(0, height - tile_px), max(0, width - tile_px)
    top, left = (int(rng.integers(0, limit + 1)) for limit in (max_top, max_left))
    objects = np.flatnonzero(~ignore)
    if max(max_top, max_left) and len(objects) and rng.random() < OBJECT_CROP_PROBABILITY:
        x1, y1, x2, y2 = boxes[rng.choice(objects)].tolist()
        top = _crop_start(y1, y2, tile_px, max_top, rng)
        left = _crop_start(x1, x2, tile_px, max_left, rng)
    tile = pad(pixels[top : top + tile_px, left : left + tile_px], (tile_px, tile_px))
    shifted = boxes - np.array([left, top, left, top], np.float32)
    clipped = shifted.clip(0, tile_px)
    visible = box_areas(clipped) / np.maximum(box_areas(shifted), 1e-6)
    is_object = (visible >= MIN_VISIBLE_FRACTION) & ~ignore
    return tile, clipped.astype(np.float32), is_object, (visible > 0) & ~is_object


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
