"""Example images for figures: one window of each image as the networks see it, with its objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd import recipe
from ifkd.core.detections import Array
from ifkd.core.errors import UsageError, did_you_mean
from ifkd.core.oriented_boxes import resize, translate
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.oriented_metrics import object_outlines
from ifkd.imagery.image_files import pad
from ifkd.training.dataset import load_scaled
from ifkd.training.prediction import padded_size

PREFERRED_OBJECTS = 8
"""Preferred number of objects in an image, among images with the same number of new classes."""
LISTED_IMAGES = 5
"""Images that an error message lists."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window of an image, in pixels of the networks' input."""

    name: str
    """The image's file name without extension."""
    pixels: Array
    """uint8 [height, width, 3]."""
    boxes: Array
    """float32 [n, 4], objects whose center is in the window, clipped to it."""
    labels: Array
    """int64 [n]."""
    oriented: Array | None = None
    """float32 [n, 5], oriented boxes of the objects, not clipped; None if the data have none."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def padded(self) -> Array:
        """The pixels, padded to a multiple of the networks' stride."""
        return pad(self.pixels, padded_size(self.size))


def select_examples(
    dataset: CocoDataset, data: recipe.DataOptions, *, names: Sequence[str] = (), count: int = 3
) -> list[Example]:
    """Return examples of the named images, or of `count` images that together show many classes.

    `names` are image ids, or file names with or without extension. An image larger than a tile is cropped to the
    window with most objects.

    Raises:
        UsageError: An image does not exist.
        DataError: An image cannot be read.
    """
    images = [_find_image(dataset, name) for name in names] if names else _diverse_images(dataset.images, count)
    return [_crop_example(image, data) for image in images]


def _find_image(dataset: CocoDataset, name: str) -> LabeledImage:
    by_name: dict[str, LabeledImage] = {}
    for image in dataset.images:
        by_name |= {str(image.id): image, image.path.name: image, image.path.stem: image}
    if name not in by_name:
        stems = [image.path.stem for image in dataset.images]
        hint = did_you_mean(name, [*stems, *(str(image.id) for image in dataset.images)])
        first = ", ".join(f"{image.id} ({image.path.stem})" for image in dataset.images[:LISTED_IMAGES])
        raise UsageError(f"{dataset.path} has no image {name!r}", hint=f"{hint} The first images are {first}".lstrip())
    return by_name[name]


def _diverse_images(images: Sequence[LabeledImage], count: int) -> list[LabeledImage]:
    """Return up to `count` images, each with as many classes as possible that no earlier one shows."""
    candidates, selected = [image for image in images if _classes(image)], list[LabeledImage]()
    shown: set[int] = set()

    def rank(image: LabeledImage) -> tuple[int, int]:
        return -len(_classes(image) - shown), abs(int((~image.ignore).sum()) - PREFERRED_OBJECTS)

    while candidates and len(selected) < count:
        best = min(candidates, key=rank)
        selected.append(best)
        candidates.remove(best)
        shown |= _classes(best)
        candidates = [image for image in candidates if image.scene != best.scene] or candidates
    return selected


def _classes(image: LabeledImage) -> set[int]:
    return set(image.labels[~image.ignore].tolist())


def _crop_example(image: LabeledImage, data: recipe.DataOptions) -> Example:
    pixels, boxes = load_scaled(image, data.scale, imagery=data.imagery)
    to = (pixels.shape[0], pixels.shape[1])
    boxes, labels = boxes[~image.ignore], image.labels[~image.ignore]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    left, top = _densest_window(centers, (pixels.shape[1], pixels.shape[0]), data.tile_px)
    pixels = np.ascontiguousarray(pixels[top : top + data.tile_px, left : left + data.tile_px])
    corner = np.array([left, top], np.float32)
    inside = ((centers >= corner) & (centers < corner + data.tile_px)).all(1)
    limits = np.array([pixels.shape[1], pixels.shape[0]] * 2, np.float32)
    clipped = np.clip(boxes[inside] - np.tile(corner, 2), 0, limits).astype(np.float32)
    oriented = None
    if image.oriented is not None:
        outlines = resize(object_outlines(image)[~image.ignore][inside], image.size, to)
        oriented = translate(outlines, dx=float(-left), dy=float(-top))
    return Example(image.path.stem, pixels, clipped, labels[inside], oriented)


def _densest_window(centers: Array, size_wh: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the upper left corner (x, y) of the window around an object that contains most object centers."""
    last = np.maximum(np.array(size_wh) - side, 0)
    corners = np.clip(np.round(centers - side / 2), 0, last).astype(int)
    if not len(corners):
        corners = last[None] // 2
    counts = [int(((centers >= corner) & (centers < corner + side)).all(1).sum()) for corner in corners]
    left, top = corners[int(np.argmax(counts))].tolist()
    return left, top
