"""Detector outputs: candidates before non-maximum suppression, detections after it.

Boxes are `x1, y1, x2, y2`, float32, in pixels; (0, 0) is the outer corner of the first pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    def __post_init__(self) -> None:
        assert self.boxes.ndim == 3 and self.boxes.shape[2] == 4, self.boxes.shape  # noqa: PT018
        assert self.scores.shape == self.labels.shape == self.boxes.shape[:2]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.boxes)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detected objects of one image or scene."""

    boxes: Array
    """float32 [n, 4], pixels."""
    scores: Array
    """float32 [n], 0 to 1."""
    labels: Array
    """int64 [n], class indices."""

    def __post_init__(self) -> None:
        assert self.boxes.ndim == 2 and self.boxes.shape[1] == 4, self.boxes.shape  # noqa: PT018
        assert len(self.boxes) == len(self.scores) == len(self.labels)

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.boxes)

    @classmethod
    def empty(cls) -> "Detections":
        """Return no objects."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """Return the objects of all `parts`, in order."""
        if not parts:
            return cls.empty()
        names = ("boxes", "scores", "labels")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def select(self, index: Array) -> "Detections":
        """Return the objects at `index` (integers or a boolean mask)."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    def translated(self, *, dx: float = 0.0, dy: float = 0.0) -> "Detections":
        """Return the objects moved by (dx, dy) pixels, to the right and down."""
        return Detections(self.boxes + np.array([dx, dy, dx, dy], np.float32), self.scores, self.labels)

    def resized(self, size: tuple[int, int], to: tuple[int, int]) -> "Detections":
        """Return the objects of an image of `size` (height, width) after it is resized `to` another."""
        return Detections(resize_boxes(self.boxes, size, to), self.scores, self.labels)

    def clipped(self, size: tuple[int, int]) -> "Detections":
        """Return the objects clipped to an image of `size` (height, width), without those of zero area."""
        boxes = self.boxes.clip(0, np.array([size[1], size[0]] * 2, self.boxes.dtype))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Detections(boxes[kept], self.scores[kept], self.labels[kept])

    def in_canonical_order(self) -> "Detections":
        """Return the objects by descending score, then by label and coordinates, so that the order is unique."""
        x1, y1, x2, y2 = self.boxes.T
        return self.select(np.lexsort((y2, x2, y1, x1, self.labels, -self.scores)))


def resize_boxes(boxes: Array, size: tuple[int, int], to: tuple[int, int]) -> Array:
    """Return boxes [n, 4] of an image of `size` (height, width), float32, after the image is resized `to` another.

    Each axis has its own factor, because both sizes are whole pixels.
    """
    return (boxes * np.array([to[1] / size[1], to[0] / size[0]] * 2)).astype(np.float32)


def box_areas(boxes: Array) -> Array:
    """Return the areas [n] of boxes [n, 4]; 0 where a side is negative."""
    extent = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    return extent[:, 0] * extent[:, 1]


def pairwise_iou(boxes: Array, others: Array) -> Array:
    """Return the intersection over union, float64 [n, m], of boxes [n, 4] and [m, 4]; 0 where both areas are 0."""
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    intersection = pairwise_intersection(boxes, others)
    union = box_areas(boxes)[:, None] + box_areas(others)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def pairwise_intersection(boxes: Array, others: Array) -> Array:
    """Return the areas [n, m] that boxes [n, 4] and [m, 4] have in common."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    extent = (high - low).clip(min=0)
    return extent[..., 0] * extent[..., 1]
