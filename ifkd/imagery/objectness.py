"""Objectness of boxes and tiles in the map of a screen, the small network that finds the tiles worth searching."""

import math

import numpy as np

from ifkd.core.detections import Array

PARTS = 4
"""Number of parts of a box that is as wide as the margin, in each direction; more parts are less strict."""


def box_objectness(objectness: Array, boxes: Array, *, cell_px: float) -> Array:
    """Return the largest value, float32 [n], of the cells that each box touches; 0 for a box outside of the map.

    `objectness` is float32 [rows, columns]; cell (r, c) shows the pixels from (c, r) * `cell_px`; `boxes` is [n, 4],
    x1 y1 x2 y2, in the same pixels. The value of a tile is thus at least that of every box inside it.
    """
    rows, columns = objectness.shape
    low = np.floor(boxes[:, :2] / cell_px).astype(int).clip(0)
    high = np.ceil(boxes[:, 2:] / cell_px).astype(int).clip(low + 1).clip(max=(columns, rows))
    corners = np.concatenate([low, high], axis=1).tolist()
    maxima = [objectness[top:bottom, left:right].max(initial=0.0) for left, top, right, bottom in corners]
    return np.array(maxima, np.float32)


def kept_up_to(objectness: Array, boxes: Array, *, cell_px: float, margin_px: float) -> Array:
    """Return the largest threshold, float32 [n], at which no screen changes or removes each box [n, 4].

    Tiles are searched that have a cell above the threshold within `margin_px`. All tiles that a box touches are
    searched if each of its points has such a cell that near. Boxes that overlap, also in a chain, may remove each
    other, so all of a chain have the value of the lowest one.
    """
    parts = [_parts(box, margin_px) for box in boxes.tolist()]
    found = box_objectness(objectness, np.concatenate([np.zeros((0, 4)), *parts]), cell_px=cell_px)
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    own = np.minimum.reduceat(found, starts) if len(boxes) else found
    overlaps = (boxes[:, None, :2] < boxes[None, :, 2:]).all(axis=2)
    overlaps &= overlaps.T
    while True:
        lowest = np.where(overlaps, own, np.float32(np.inf)).min(axis=1, initial=np.float32(np.inf))
        lowest = np.minimum(own, lowest)  # a box without an area overlaps with nothing
        if (lowest == own).all():
            return own
        own = lowest


def _parts(box: list[float], margin_px: float) -> Array:
    """Return the areas, float64 [n, 4], around equal parts of a box, that are within the margin of all their points."""
    rows, columns = (max(1, math.ceil(PARTS * (box[axis + 2] - box[axis]) / margin_px)) for axis in (1, 0))
    x, y = np.linspace(box[0], box[2], columns + 1), np.linspace(box[1], box[3], rows + 1)
    across, down = margin_px - (x[1] - x[0]), margin_px - (y[1] - y[0])
    left, top = np.meshgrid(x[:-1] - across, y[:-1] - down)
    right, bottom = np.meshgrid(x[1:] + across, y[1:] + down)
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)
