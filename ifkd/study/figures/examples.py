"""The images that figures show: a window of each as training has it, with the objects in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ifkd import recipe
from ifkd.core.detections import Array
from ifkd.core.errors import UsageError, did_you_mean
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.image_files import pad
from ifkd.training.dataset import scaled
from ifkd.training.prediction import padded_size

TELLING_OBJECTS = 8
"""Objects that make a good picture; of images alike in classes, that with a number nearest to this is shown."""
HINTS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A window of an image, in the pixels that networks see."""

    name: str
    """The image's file name without its ending."""
    pixels: Array
    """uint8 [height, width, 3]."""
    boxes: Array
    """float32 [n, 4], of the objects that lie in it."""
    labels: Array

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def padded(self) -> Array:
        """The pixels, filled up to the networks' stride."""
        return pad(self.pixels, padded_size(self.size))


def examples(
    dataset: CocoDataset, data: recipe.DataOptions, *, names: Sequence[str] = (), count: int = 3
) -> list[Example]:
    """Return the images named, or `count` that together show many classes.

    Args:
        dataset: The split.
        data: How images are brought to a detector; a larger one is cut to the `tile_px` window with most objects.
        names: Image ids, or file names with or without their ending.
        count: How many to choose where none are named.

    Raises:
        UsageError: There is no such image.
        DataError: An image cannot be read.
    """
    chosen = [_named(dataset, name) for name in names] if names else _telling(dataset.images, count)
    return [_example(image, data) for image in chosen]


def _named(dataset: CocoDataset, name: str) -> LabeledImage:
    known: dict[str, LabeledImage] = {}
    for image in dataset.images:
        known |= {str(image.id): image, image.path.name: image, image.path.stem: image}
    if name not in known:
        stems = [image.path.stem for image in dataset.images]
        hint = did_you_mean(name, [*stems, *(str(image.id) for image in dataset.images)])
        first = ", ".join(f"{image.id} ({image.path.stem})" for image in dataset.images[:HINTS])
        raise UsageError(f"{dataset.path} has no image {name!r}", hint=f"{hint} The first of them are {first}".lstrip())
    return known[name]


def _telling(images: Sequence[LabeledImage], count: int) -> list[LabeledImage]:
    """Return images one by one, each with as many classes as possible that no earlier one shows."""
    rest, chosen = [image for image in images if _objects(image)], list[LabeledImage]()
    seen: set[int] = set()
    while rest and len(chosen) < count:
        best = min(rest, key=partial(_rank, seen=frozenset(seen)))
        chosen.append(best)
        rest.remove(best)
        seen |= _classes(best)
        rest = [image for image in rest if image.place != best.place] or rest
    return chosen


def _rank(image: LabeledImage, *, seen: frozenset[int]) -> tuple[int, int]:
    """Return how late an image comes: by the classes it adds, then by its number of objects."""
    return -len(_classes(image) - seen), abs(_objects(image) - TELLING_OBJECTS)


def _objects(image: LabeledImage) -> int:
    return int((~image.ignore).sum())


def _classes(image: LabeledImage) -> set[int]:
    return set(image.labels[~image.ignore].tolist())


def _example(image: LabeledImage, data: recipe.DataOptions) -> Example:
    pixels, boxes = scaled(image, data.scale, imagery=data.imagery)
    boxes, labels = boxes[~image.ignore], image.labels[~image.ignore]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    left, top = _window(centers, (pixels.shape[1], pixels.shape[0]), data.tile_px)
    pixels = np.ascontiguousarray(pixels[top : top + data.tile_px, left : left + data.tile_px])
    corner = np.array([left, top], np.float32)
    inside = ((centers >= corner) & (centers < corner + data.tile_px)).all(1)
    side = np.array([pixels.shape[1], pixels.shape[0]] * 2, np.float32)
    moved = np.clip(boxes[inside] - np.tile(corner, 2), 0, side).astype(np.float32)
    return Example(image.path.stem, pixels, moved, labels[inside])


def _window(centers: Array, size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the corner (x, y) of the window of an image (width, height) that holds most centers: one is its middle."""
    most = np.maximum(np.array(size) - side, 0)
    corners = np.clip(np.round(centers - side / 2), 0, most).astype(int)
    if not len(corners):
        corners = most[None] // 2
    held = [int(((centers >= corner) & (centers < corner + side)).all(1).sum()) for corner in corners]
    left, top = corners[int(np.argmax(held))].tolist()
    return left, top
