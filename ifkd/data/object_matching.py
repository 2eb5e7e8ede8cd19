"""Match detections with labeled objects: true and false positives, precision, recall and F1 at one IoU."""

import numpy as np

from ifkd.core.detections import Array, Detections, box_areas, pairwise_intersection, pairwise_iou
from ifkd.data.coco import LabeledImage
from ifkd.data.oriented_metrics import comparable_outlines

MATCH_IOU = 0.5
TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, 0, -1
NO_OBJECT, IN_IGNORED_REGION = -1, -2
CHUNK = 2048
"""Detections that are compared with the objects at a time."""


def match_objects(detections: Detections, image: LabeledImage) -> Array:
    """Return TRUE_POSITIVE, FALSE_POSITIVE or IGNORED for each detection, int8 [n]; see `matched_objects`."""
    objects = matched_objects(detections, image)
    matches = np.where(objects >= 0, TRUE_POSITIVE, FALSE_POSITIVE)
    return np.where(objects == IN_IGNORED_REGION, IGNORED, matches).astype(np.int8)


def matched_objects(detections: Detections, image: LabeledImage) -> Array:
    """Return the object of each detection, NO_OBJECT or IN_IGNORED_REGION, int64 [n]; best scores come first.

    A detection takes the free object of its class with the highest IoU, at least MATCH_IOU: that of oriented boxes
    where the detections and the objects have them. One that finds none is ignored if at least half of it is inside a
    region of its class that is ignored. The result of a detection does not depend on detections with lower scores.
    """
    matches = np.full(len(detections), NO_OBJECT, np.int64)
    for label in np.unique(detections.labels):
        of_class = np.flatnonzero(detections.labels == label)
        objects = np.flatnonzero((image.labels == label) & ~image.ignore)
        ignored = (image.labels == label) & image.ignore
        free = np.ones(len(objects), bool)
        for start in range(0, len(of_class), CHUNK):
            index = of_class[start : start + CHUNK]
            boxes, others = comparable_outlines(detections.select(index), image)
            found = _match_chunk(pairwise_iou(boxes, others[objects]), free)
            without = np.where(_mostly_inside(boxes, others[ignored]), IN_IGNORED_REGION, NO_OBJECT)
            matches[index] = np.where(found >= 0, np.append(objects, -1)[found], without)
    return matches


def rates(true_positives: int, false_positives: int | float, objects: int) -> dict[str, float | None]:  # noqa: PYI041
    """Return precision, recall and F1; None where the denominator is 0."""
    found = true_positives + false_positives
    f1 = (2 * true_positives, found + objects)
    parts = {"precision": (true_positives, found), "recall": (true_positives, objects), "f1": f1}
    return {name: part / total if total else None for name, (part, total) in parts.items()}


def _match_chunk(iou: Array, free: Array) -> Array:
    """Return the objects of detections with an IoU [n, objects], -1 for none, and mark them as not `free`."""
    found = np.full(len(iou), -1)
    for row in range(len(iou)):
        available = np.where(free, iou[row], -1.0)
        if len(free) and available.max() >= MATCH_IOU:
            found[row] = available.argmax()
            free[found[row]] = False
    return found


def _mostly_inside(boxes: Array, regions: Array) -> Array:
    """Return which boxes have at least half of their area inside one region, bool [n]."""
    if not len(regions):
        return np.zeros(len(boxes), bool)
    return np.asarray(pairwise_intersection(boxes, regions).max(axis=1) >= 0.5 * box_areas(boxes))
