"""From scatterers to amplitudes: the echo of a point, speckle, and shadows on the pixel grid."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ifkd.core.detections import Array
from ifkd.data.synthetic.noise import hashed

REACH_PX = 5
"""How far a point's echo is followed."""
SUPERSAMPLING = 4
LOOK_STEP = 0x3C6EF372


@dataclass(frozen=True, slots=True, eq=False)
class Echoes:
    """What a group of scatterers adds to the picture, on the world's pixel grid."""

    top: int
    """First row, pixels of the world."""
    left: int
    """First column, pixels of the world."""
    field: Array
    """complex64 [height, width]."""
    shade: Array | None = None
    """float32 [height, width]: how much of the ground's echo is missing, 0 to 1; None: nothing is."""


def point_response(offsets: Array, resolution_px: float) -> Array:
    """Return the amplitude of a point's echo at offsets in pixels along one axis: a sinc under a Hamming window.

    It is 1 in the middle, and falls by about 3 dB at half the resolution.
    """
    window = np.where(np.abs(offsets) < REACH_PX, 0.54 + 0.46 * np.cos(np.pi * offsets / REACH_PX), 0.0)
    return np.asarray(np.sinc(offsets / resolution_px) * window)


def echoes_of(places_px: Array, echoes: Array, *, resolution_px: float, shadow_px: Array | None = None) -> Echoes:
    """Return the coherent sum of points' echoes.

    Args:
        places_px: float64 [n, 2], x, y in pixels of the world.
        echoes: complex64 [n].
        resolution_px: Width of an echo.
        shadow_px: A polygon [m, 2] on the ground that gets no signal.
    """
    every = places_px if shadow_px is None else np.concatenate([places_px, shadow_px])
    low, high = np.floor(every.min(axis=0)).astype(int), np.ceil(every.max(axis=0)).astype(int)
    left, top = (low - REACH_PX - 1).tolist()
    width, height = (high - low + 2 * REACH_PX + 3).tolist()
    columns, rows = np.arange(left, left + width) + 0.5, np.arange(top, top + height) + 0.5
    along_x = point_response(columns[None, :] - places_px[:, :1], resolution_px)
    along_y = point_response(rows[None, :] - places_px[:, 1:], resolution_px)
    field = (along_y * echoes[:, None]).T @ along_x
    shade = None if shadow_px is None else _filled(shadow_px - [left, top], (height, width))
    return Echoes(top, left, field.astype(np.complex64), shade)


def speckled(intensity: Array, rows: Array, columns: Array, *, resolution_px: float, seed: int, look: int = 0) -> Array:
    """Return a look at ground of a mean intensity: complex64, less `REACH_PX` pixels on each side.

    Circular Gaussian, correlated as far as an echo is wide; every value depends on its place, the seed
    and the look alone.
    """
    # neighbouring seeds of `hashed` give the same values a row further, so looks are set far apart
    bits = hashed(seed + look * LOOK_STEP, rows[:, None], columns[None, :])
    radius = np.sqrt(-np.log((bits >> np.uint32(16)).astype(np.float32) / 65536.0 + np.float32(2.0**-17)))
    phase = (bits & np.uint32(0xFFFF)).astype(np.float32) * np.float32(2 * math.pi / 65536.0)
    scale = np.sqrt(intensity) * radius
    taps = point_response(np.arange(-REACH_PX, REACH_PX + 1), resolution_px)
    taps = (taps / np.sqrt((taps**2).sum())).astype(np.float32)
    field = np.empty((len(rows) - 2 * REACH_PX, len(columns) - 2 * REACH_PX), np.complex64)
    field.real = _smoothed(scale * np.cos(phase), taps)
    field.imag = _smoothed(scale * np.sin(phase), taps)
    return field


def _smoothed(values: Array, taps: Array) -> Array:
    """Return values [h, w] filtered along both axes, without the margin that the filter needs."""
    height, width = (length - len(taps) + 1 for length in values.shape)
    down = sum(values[index : index + height] * tap for index, tap in enumerate(taps))
    assert isinstance(down, np.ndarray)
    return np.asarray(sum(down[:, index : index + width] * tap for index, tap in enumerate(taps)))


def _filled(polygon: Array, size: tuple[int, int]) -> Array:
    height, width = size
    image = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    points = [(float(x), float(y)) for x, y in polygon * SUPERSAMPLING - 0.5]
    ImageDraw.Draw(image).polygon(points, fill=255)
    return np.asarray(image.reduce(SUPERSAMPLING), np.float32) / np.float32(255.0)
