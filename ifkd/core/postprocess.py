"""Score threshold and non-maximum suppression, the same in training and inference."""

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from ifkd.core.config import Schema
from ifkd.core.detections import Array, Candidates, Detections, box_areas, covered_by_larger, pairwise_intersection

ROWS_AT_ONCE = 64
"""Oriented boxes that are compared with all remaining ones at a time; more are faster if few boxes overlap."""
PIECE_INSIDE = 0.6
"""Least fraction of a detection inside a larger one that makes it a piece of that."""


class PostprocessConfig(Schema):
    """Thresholds that select detections among candidates."""

    score_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Candidates with a score above this are kept (0 to 1)."""
    iou_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """IoU threshold of non-maximum suppression within a class; recipes of oriented detectors have 0.1 by default."""
    max_detections: PositiveInt = 100
    """Maximum number of detections per tile; an image of several tiles may have more."""


def postprocess(
    candidates: Candidates, config: PostprocessConfig, *, size: tuple[int, int] | None = None
) -> list[Detections]:
    """Return the detections of each tile, by descending score; a `size` (height, width) clips the boxes first."""
    result = []
    for tile in candidates.of_each_tile():
        detections = tile.select(tile.scores > config.score_threshold)
        if size is not None:
            detections = detections.clipped(size)
        detections = nms(detections, iou_threshold=config.iou_threshold)
        result.append(detections.select(np.arange(min(len(detections), config.max_detections))))
    return result


def nms(detections: Detections, *, iou_threshold: float, class_agnostic: bool = False) -> Detections:
    """Return the detections that non-maximum suppression keeps, in canonical order.

    A box is removed when its IoU with a kept box of its class, or of any class if `class_agnostic`, is above
    `iou_threshold`. The result does not depend on the order of the input.
    """
    ordered = detections.in_canonical_order()
    kept = np.zeros(len(ordered), bool)
    groups = np.zeros_like(ordered.labels) if class_agnostic else ordered.labels
    for label in np.unique(groups):
        index = np.flatnonzero(groups == label)
        kept_of_class = _kept_of_class if ordered.oriented is None else _kept_of_oriented_class
        kept[index[kept_of_class(ordered.outlines[index], iou_threshold)]] = True
    return ordered.select(kept)


def one_of_each(found: Detections, *, iou_threshold: float) -> Detections:
    """Return one detection of each object, of any class: without the pieces that the edges of other tiles cut off."""
    best = nms(found, iou_threshold=iou_threshold, class_agnostic=True)
    return best.select(covered_by_larger(best.outlines) < PIECE_INSIDE)


def _kept_of_class(boxes: Array, iou_threshold: float) -> Array:
    boxes = boxes.astype(np.float64)
    areas = box_areas(boxes)
    remaining = np.arange(len(boxes))
    kept = []
    while len(remaining):
        first, remaining = remaining[0], remaining[1:]
        kept.append(first)
        intersection = pairwise_intersection(boxes[first : first + 1], boxes[remaining])[0]
        remaining = remaining[intersection <= iou_threshold * (areas[first] + areas[remaining] - intersection)]
    return np.array(kept, np.int64)


def _kept_of_oriented_class(boxes: Array, iou_threshold: float) -> Array:
    """Return what `_kept_of_class` does; overlaps are computed many at a time, as each call takes long."""
    areas, kept, remaining = box_areas(boxes), [], np.arange(len(boxes))
    while len(remaining):
        first = remaining[:ROWS_AT_ONCE]
        intersection = pairwise_intersection(boxes[first], boxes[remaining])
        above = intersection > iou_threshold * (areas[first, None] + areas[remaining] - intersection)
        free = np.ones(len(remaining), bool)
        for row in range(len(first)):
            if free[row]:
                kept.append(first[row])
                free[row + 1 :] &= ~above[row, row + 1 :]
        remaining = remaining[len(first) :][free[len(first) :]]
    return np.array(kept, np.int64)
