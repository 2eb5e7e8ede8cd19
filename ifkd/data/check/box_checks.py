"""Checks of boxes against their image and each other: outside, without area, tiny, duplicated."""

import math
from collections.abc import Sequence

import numpy as np
import shapely

from ifkd.core.detections import Array, pairwise_iou
from ifkd.data.check.finding import DROPS_BOX, Findings
from ifkd.data.check.lenient_coco import BoxEntry, ImageEntry
from ifkd.data.coco import BORDER_TOLERANCE_PX
from ifkd.data.oriented_labels import oriented_boxes, polygon_points

Corners = tuple[float, float, float, float]
"""x1 y1 x2 y2, pixels."""

TINY_PX = 1.0
DUPLICATE_IOU = 0.95
DUPLICATE_KINDS = frozenset({"boxes_duplicated", "boxes_of_two_classes"})
MAX_COMPARED_PX = 1e9
"""Coordinates are clipped to this before boxes are compared, so that no area overflows."""
SAME_PLACE_IOU = 0.5
"""Least overlap of a box and the upright box of its polygon."""
RECTANGLE_FRACTION = 0.9
"""Least part of its smallest rectangle that a quadrilateral fills; corners rounded to pixels fill more."""
BLOCK_ROWS = 256
"""Boxes compared with all others at once, which bounds the memory of a crowded image."""


def check_boxes(image: ImageEntry, size: tuple[int, int] | None, *, split: str, findings: Findings) -> list[str | None]:
    """Return the kind of finding of each box of an image, None for a valid one, and add them to `findings`.

    The `size` is (height, width) in pixels; None skips the checks of the position.
    """
    kinds = [box_problem(box.corners, size) for box in image.boxes]
    kept = [index for index, kind in enumerate(kinds) if kind not in DROPS_BOX]
    for index, other, relation in _duplicates(image, kept):
        kinds[index] = relation
        findings.add(relation, split, f"{_name(image.boxes[index])} and {_name(image.boxes[other])} of {image.name}")
    for box, polygon in zip(image.boxes, polygon_problems(image.boxes, size), strict=True):
        if polygon is not None:
            findings.add(polygon, split, f"{_name(box)} of {image.name}")
    for box, kind in zip(image.boxes, kinds, strict=True):
        if kind is not None and kind not in DUPLICATE_KINDS:
            corners = ", ".join(f"{value:.6g}" for value in box.corners)
            where = "" if size is None else f" in {size[1]}x{size[0]}"
            findings.add(kind, split, f"{_name(box)} of {image.name}: [{corners}]{where}")
    return kinds


def check_oriented(image: ImageEntry, *, split: str, findings: Findings) -> None:
    """Add a finding for each object of an image, not an ignored region, that has no oriented box."""
    polygons = [polygon_points(box.content.get("segmentation")) for box in image.boxes]
    for box, oriented in zip(image.boxes, oriented_boxes(polygons), strict=True):
        if np.isnan(oriented).any() and not box.ignore:
            findings.add("boxes_not_oriented", split, f"{_name(box)} of {image.name}")


def clip_box(corners: Corners, size: tuple[int, int]) -> Corners:
    """Return a box clipped to an image of (height, width)."""
    x1, y1, x2, y2 = corners
    height, width = float(size[0]), float(size[1])
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def box_problem(corners: Corners, size: tuple[int, int] | None) -> str | None:
    """Return the kind of finding of a box in an image of (height, width), None for a valid one."""
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        return "boxes_not_finite"
    if x2 <= x1 or y2 <= y1:
        return "boxes_without_area"
    if size is None:
        return None
    clipped = clip_box(corners, size)
    visible = min(clipped[2] - clipped[0], clipped[3] - clipped[1])
    overshoot = max(-x1, -y1, x2 - size[1], y2 - size[0])
    crosses = overshoot > BORDER_TOLERANCE_PX
    if visible < TINY_PX:
        return "boxes_outside_image" if crosses or visible <= 0 else "boxes_tiny"
    if crosses:
        return "boxes_cross_border"
    return "boxes_cross_border_slightly" if overshoot > 0 else None


def polygon_problems(boxes: Sequence[BoxEntry], size: tuple[int, int] | None) -> list[str | None]:
    """Return the kind of finding of the polygon of each box in an image of (height, width), None without a mistake."""
    stated = [one.content.get("segmentation") for one in boxes]
    polygons = [polygon_points(one) for one in stated]
    rectangles = oriented_boxes(polygons)
    kinds: list[str | None] = []
    for box, segmentation, points, rectangle in zip(boxes, stated, polygons, rectangles, strict=True):
        if not isinstance(segmentation, list) or not segmentation:
            kinds.append(None)
        elif points is None or np.isnan(rectangle).any():
            kinds.append("polygons_without_area")
        elif box_problem(box.corners, None) is None and _is_apart(points, box.corners, size):
            kinds.append("polygons_apart_from_boxes")
        elif len(points) != 4:
            kinds.append("polygons_of_other_points")
        else:
            filled = shapely.MultiPoint(points).convex_hull.area / rectangle[2:4].prod()
            kinds.append(None if filled >= RECTANGLE_FRACTION else "quadrilaterals_not_rectangles")
    return kinds


def _is_apart(points: Array, corners: Corners, size: tuple[int, int] | None) -> bool:
    """Return whether the upright box of a polygon is not the stated box, both as far as they are in the image."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    both = [one if size is None else clip_box(one, size) for one in ((x1, y1, x2, y2), corners)]
    of_polygon, of_box = (np.array([one]).clip(-MAX_COMPARED_PX, MAX_COMPARED_PX) for one in both)
    return float(pairwise_iou(of_polygon, of_box)[0, 0]) < SAME_PLACE_IOU


def _duplicates(image: ImageEntry, kept: Sequence[int]) -> list[tuple[int, int, str]]:
    """Return (box, an earlier one in the same place, kind), each box once, of the boxes `kept`."""
    found: list[tuple[int, int, str]] = []
    corners = np.array([image.boxes[index].corners for index in kept], np.float64).reshape(-1, 4)
    boxes = corners.clip(-MAX_COMPARED_PX, MAX_COMPARED_PX)
    duplicated: set[int] = set()
    for start in range(0, len(kept), BLOCK_ROWS):
        rows, columns = np.nonzero(pairwise_iou(boxes[start : start + BLOCK_ROWS], boxes) >= DUPLICATE_IOU)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            index, other = kept[row], kept[column]
            if column >= row or index in duplicated or other in duplicated:
                continue
            duplicated.add(index)
            same_class = image.boxes[index].category == image.boxes[other].category
            found.append((index, other, "boxes_duplicated" if same_class else "boxes_of_two_classes"))
    return found


def _name(box: BoxEntry) -> str:
    annotation_id = box.content.get("id")
    return f"annotation {annotation_id!r}" if isinstance(annotation_id, int | str) else "an annotation"
