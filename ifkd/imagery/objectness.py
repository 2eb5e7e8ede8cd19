"""Objectness of boxes and tiles in the map of a screen, the small network that finds the tiles worth searching."""

import numpy as np

from ifkd.core.detections import Array


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
