"""Oriented boxes of labels: read from COCO's polygons, written as four corners, and cut at the border of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from ifkd.core.detections import Array
from ifkd.core.oriented_boxes import canonical, corners, envelopes, from_corners

MIN_SIDE_PX = 0.01
"""A narrower polygon has no area, and a narrower part of a box is not visible."""
MAX_POSITION_PX = 2.0**25
"""Polygons with points beyond are not read."""
ROUNDING_PX = 1e-3
"""A box that crosses a border by less is not cut."""


def polygon_points(segmentation: Any) -> Array | None:
    """Return the points of a `segmentation`, a polygon or a list of polygons, float64 [n, 2]; None if it is another."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
    try:
        points = np.concatenate([np.array(ring, np.float64).reshape(-1, 2) for ring in rings])
    except (OverflowError, TypeError, ValueError):
        return None
    return points if len(points) >= 3 and bool((np.abs(points) < MAX_POSITION_PX).all()) else None


def oriented_boxes(polygons: Sequence[Array | None]) -> Array:
    """Return the smallest oriented boxes around polygons [_, 2], float32 [n, 5]; NaN for None or without an area."""
    found = np.full((len(polygons), 5), np.nan, np.float32)
    quadrilaterals: dict[int, Array] = {}
    others: list[int] = []
    for index, points in enumerate(polygons):
        if points is not None and len(points) == 4:
            quadrilaterals[index] = points
        elif points is not None:
            others.append(index)
    rectangles = shapely.minimum_rotated_rectangle([shapely.MultiPoint(polygons[index]) for index in others])
    for index, rectangle in zip(others, rectangles, strict=True):
        if rectangle.geom_type == "Polygon":  # that of points on a line is a line
            quadrilaterals[index] = shapely.get_coordinates(rectangle)[:4]
    if quadrilaterals:
        found[list(quadrilaterals)] = from_corners(np.stack(list(quadrilaterals.values())))
    found[found[:, 3] < MIN_SIDE_PX] = np.nan
    return found


def box_around(points: Array, angle_deg: float) -> Array:
    """Return the smallest oriented box [5] around points [_, 2] that has a side in a direction."""
    angle = np.deg2rad(angle_deg)
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    positions = points @ axes.T
    low, high = positions.min(axis=0), positions.max(axis=0)
    return np.asarray(canonical(np.array([[*((low + high) / 2 @ axes), *(high - low), angle_deg]]))[0])


def corner_polygon(oriented: Array) -> list[list[float]]:
    """Return an oriented box [5] as the `segmentation` of a COCO file: one polygon of four corners."""
    return [[round(value, 3) for value in corners(oriented[None]).ravel().tolist()]]


@dataclass(frozen=True, slots=True, eq=False)
class CutBoxes:
    """Parts of oriented boxes inside a window; all values are NaN for a box that is NaN."""

    oriented: Array
    """float32 [n, 5], the smallest boxes of the same direction around the parts; NaN where nothing is visible."""
    bounds: Array
    """float32 [n, 4], the upright boxes of the parts; NaN where nothing is visible."""
    visible: Array
    """float64 [n], visible fractions of the areas."""


def cut_boxes(oriented: Array, size: tuple[int, int]) -> CutBoxes:
    """Cut oriented boxes [n, 5] at the border of a window of (height, width) that begins at (0, 0).

    A cut box keeps its direction: the smallest rectangle around a part may have any other.
    """
    oriented, bounds = oriented.copy(), envelopes(oriented)
    visible = np.where(np.isnan(oriented[:, 0]), np.nan, 1.0)
    (x1, y1, x2, y2), (height, width) = bounds.T, size
    outside = (x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0)
    oriented[outside], bounds[outside], visible[outside] = np.nan, np.nan, 0.0
    overshoot = np.max([-x1, -y1, x2 - width, y2 - height], axis=0)
    crossing = np.flatnonzero(~outside & (overshoot > ROUNDING_PX))
    window = shapely.box(0, 0, width, height)
    for row, points in zip(crossing.tolist(), corners(oriented[crossing]).astype(np.float64), strict=True):
        part = shapely.Polygon(points).intersection(window)
        box = None if part.area == 0 else box_around(shapely.get_coordinates(part), float(oriented[row, 4]))
        if box is None or box[3] < MIN_SIDE_PX:
            oriented[row], bounds[row], visible[row] = np.nan, np.nan, 0.0
        else:
            visible[row] = part.area / oriented[row, 2:4].astype(np.float64).prod()
            oriented[row], bounds[row] = box, part.bounds
    return CutBoxes(oriented, bounds, visible)


def boxes_of_parts(boxes: Array, cut: CutBoxes) -> Array:
    """Return the upright boxes [n, 4] of a window, float32, reduced to the visible parts of oriented boxes it cuts."""
    partly = (cut.visible > 0) & (cut.visible < 1)
    low, high = np.maximum(boxes[:, :2], cut.bounds[:, :2]), np.minimum(boxes[:, 2:], cut.bounds[:, 2:])
    return np.where(partly[:, None], np.concatenate([low, high], axis=1), boxes)
