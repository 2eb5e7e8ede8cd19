"""Detector outputs: candidates before non-maximum suppression, detections after it.

Boxes are `x1, y1, x2, y2`, float32, in pixels; (0, 0) is the outer corner of the first pixel. Of an oriented detector,
they are the envelopes of the oriented boxes, clipped where others are; the oriented boxes are never clipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifkd.core import oriented_boxes

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """A fixed number of scored boxes per tile of a batch, in any order."""

    boxes: Array
    """float32 [batch, k, 4], pixels of the tile."""
    scores: Array
    """float32 [batch, k], 0 to 1."""
    labels: Array
    """int64 [batch, k], class indices."""
    oriented: Array | None = None
    """float32 [batch, k, 5], in the form of `ifkd.core.oriented_boxes`; None for a detector of upright boxes."""

    def __post_init__(self) -> None:
        assert self.boxes.ndim == 3 and self.boxes.shape[2] == 4, self.boxes.shape  # noqa: PT018
        assert self.scores.shape == self.labels.shape == self.boxes.shape[:2]
        assert self.oriented is None or self.oriented.shape == (*self.scores.shape, 5)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.boxes)

    @classmethod
    def concatenate(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """Return the tiles of all `parts`, at least one, in order."""
        oriented = None if parts[0].oriented is None else np.concatenate([part.oriented for part in parts])
        names = ("boxes", "scores", "labels")
        boxes, scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(boxes, scores, labels, oriented)

    def select(self, tiles: slice) -> "Candidates":
        """Return the candidates of some tiles."""
        oriented = None if self.oriented is None else self.oriented[tiles]
        return Candidates(self.boxes[tiles], self.scores[tiles], self.labels[tiles], oriented)

    def of_each_tile(self) -> Iterator["Detections"]:
        """Yield all candidates of each tile as detections."""
        for tile in range(len(self)):
            oriented = None if self.oriented is None else self.oriented[tile]
            yield Detections(self.boxes[tile], self.scores[tile], self.labels[tile], oriented)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detected objects of one image or scene."""

    boxes: Array
    """float32 [n, 4], pixels."""
    scores: Array
    """float32 [n], 0 to 1."""
    labels: Array
    """int64 [n], class indices."""
    oriented: Array | None = None
    """float32 [n, 5], in the form of `ifkd.core.oriented_boxes`; None for objects with upright boxes only."""

    def __post_init__(self) -> None:
        assert self.boxes.ndim == 2 and self.boxes.shape[1] == 4, self.boxes.shape  # noqa: PT018
        assert len(self.boxes) == len(self.scores) == len(self.labels)
        assert self.oriented is None or self.oriented.shape == (len(self.boxes), 5)

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.boxes)

    @classmethod
    def empty(cls, *, oriented: bool = False) -> "Detections":
        """Return no objects."""
        none = np.zeros((0, 5), np.float32) if oriented else None
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), none)

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """Return the objects of all `parts`, in order; all parts with objects have oriented boxes, or none has."""
        if not parts:
            return cls.empty()
        names = ("boxes", "scores", "labels")
        turned = [part.oriented for part in parts if part.oriented is not None]
        assert not turned or all(part.oriented is not None for part in parts if len(part)), "some are upright only"
        oriented = np.concatenate(turned) if turned else None
        boxes, scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(boxes, scores, labels, oriented)

    @property
    def outlines(self) -> Array:
        """The oriented boxes [n, 5], or the upright boxes [n, 4] of objects that have no others."""
        return self.boxes if self.oriented is None else self.oriented

    def select(self, index: Array) -> "Detections":
        """Return the objects at `index` (integers or a boolean mask)."""
        oriented = None if self.oriented is None else self.oriented[index]
        return Detections(self.boxes[index], self.scores[index], self.labels[index], oriented)

    def translated(self, *, dx: float = 0.0, dy: float = 0.0) -> "Detections":
        """Return the objects moved by (dx, dy) pixels, to the right and down."""
        oriented = None if self.oriented is None else oriented_boxes.translate(self.oriented, dx=dx, dy=dy)
        return Detections(self.boxes + np.array([dx, dy, dx, dy], np.float32), self.scores, self.labels, oriented)

    def resized(self, size: tuple[int, int], to: tuple[int, int]) -> "Detections":
        """Return the objects of an image of `size` (height, width) after it is resized `to` another."""
        oriented = None if self.oriented is None else oriented_boxes.resize(self.oriented, size, to)
        return Detections(resize_boxes(self.boxes, size, to), self.scores, self.labels, oriented)

    def clipped(self, size: tuple[int, int]) -> "Detections":
        """Return the objects with boxes clipped to an image of `size` (height, width), without those of zero area."""
        boxes = self.boxes.clip(0, np.array([size[1], size[0]] * 2, self.boxes.dtype))
        kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
        return replace(self, boxes=boxes).select(kept)

    def in_canonical_order(self) -> "Detections":
        """Return the objects by descending score, then by label and coordinates, so that the order is unique."""
        x1, y1, x2, y2 = self.boxes.T
        turned = () if self.oriented is None else (*self.oriented.T,)
        return self.select(np.lexsort((*turned, y2, x2, y1, x1, self.labels, -self.scores)))


def resize_boxes(boxes: Array, size: tuple[int, int], to: tuple[int, int]) -> Array:
    """Return boxes [n, 4] of an image of `size` (height, width), float32, after the image is resized `to` another.

    Each axis has its own factor, because both sizes are whole pixels.
    """
    return (boxes * np.array([to[1] / size[1], to[0] / size[0]] * 2)).astype(np.float32)


def box_areas(boxes: Array) -> Array:
    """Return the areas [n] of boxes [n, 4], 0 where a side is negative, or of oriented boxes [n, 5]."""
    if boxes.shape[1] == 5:
        return oriented_boxes.areas(boxes)
    extent = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    return extent[:, 0] * extent[:, 1]


def pairwise_iou(boxes: Array, others: Array) -> Array:
    """Return the intersection over union, float64 [n, m], of boxes [n, 4] and [m, 4]; 0 where both areas are 0.

    Likewise of oriented boxes [n, 5] and [m, 5].
    """
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    intersection = pairwise_intersection(boxes, others)
    union = box_areas(boxes)[:, None] + box_areas(others)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def covered_by_larger(boxes: Array) -> Array:
    """Return the fraction of the area of each box [n, 4] inside a larger one, the largest of these; float64 [n]."""
    areas = box_areas(boxes.astype(np.float64))
    inside = np.where(areas[:, None] < areas[None, :], pairwise_intersection(boxes, boxes), 0.0)
    return np.asarray(inside.max(axis=1, initial=0.0) / np.maximum(areas, np.finfo(np.float64).tiny))


def pairwise_intersection(boxes: Array, others: Array) -> Array:
    """Return the areas [n, m] that boxes [n, 4] and [m, 4], or oriented boxes [n, 5] and [m, 5], have in common."""
    if boxes.shape[1] == 5:
        return oriented_boxes.pairwise_intersection(boxes, others)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    extent = (high - low).clip(min=0)
    return extent[..., 0] * extent[..., 1]
