"""A painted rectangle, and its box as measured in the pixels of an image at any scale, to about 0.01 px."""

from typing import Any

import numpy as np
from scipy.special import erf

from ifkd.core.detections import Array

SOFT_PX = 4.0
"""Standard deviation of the blur of the edges: without it, the position of an edge depends on the sampling."""
MARGIN_PX = 4 * SOFT_PX
"""Least distance of the box from the border."""
DARK, BRIGHT = 20.0, 220.0


def paint_box(size: tuple[int, int], box: tuple[float, ...]) -> Array:
    """Return a uint8 image [height, width, 3] with a bright rectangle; values are dithered, so that means are exact."""
    x1, y1, x2, y2 = box
    values = DARK + (BRIGHT - DARK) * np.outer(_profile(size[0], y1, y2), _profile(size[1], x1, x2))
    dithered = np.floor(values + np.random.default_rng(0).random(size))
    return np.repeat(dithered.astype(np.uint8)[:, :, None], 3, axis=2)


def measure_box(pixels: Array) -> Array:
    """Return x1, y1, x2, y2, float64, of the rectangle in uint8 [height, width, 3]; padding, not gray, is left out."""
    gray = (np.ptp(pixels, axis=2) == 0).nonzero()
    bright = (pixels[: gray[0].max() + 1, : gray[1].max() + 1, 0] - DARK) / (BRIGHT - DARK)
    rows, columns = (np.flatnonzero(bright.max(axis=axis) > 0.5) for axis in (1, 0))
    x1, x2 = _edges(bright[_middle_half(rows)].mean(axis=0), round(columns.mean()))
    y1, y2 = _edges(bright[:, _middle_half(columns)].mean(axis=1), round(rows.mean()))
    return np.array([x1, y1, x2, y2])


def _profile(length: int, low: float, high: float) -> Any:
    centers = np.arange(length) + 0.5
    return (erf((centers - low) / SOFT_PX / 2**0.5) - erf((centers - high) / SOFT_PX / 2**0.5)) / 2


def _middle_half(index: Array) -> slice:
    quarter = len(index) // 4
    return slice(index[0] + quarter, index[-1] - quarter)


def _edges(profile: Array, middle: int) -> tuple[float, float]:
    """Return where a profile from 0 to 1 and back rises and falls: the areas on both sides of the middle."""
    return middle - float(profile[:middle].sum()), middle + float(profile[middle:].sum())
