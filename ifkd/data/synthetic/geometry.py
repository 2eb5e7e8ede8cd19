"""Frames, pixel grids and bounds of an imaginary world, in meters from its upper left corner."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window

Bounds = tuple[float, float, float, float]  # x1, y1, x2, y2
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """A position and a direction: local (u, v) in meters, u ahead and v to the right seen from above."""

    x: float
    y: float
    angle: float
    """Direction of u, radians from the x axis (right) toward the y axis (down)."""

    def to_world(self, local: Array | Sequence[Point]) -> Array:
        """Return world (x, y), float64 [n, 2], of local (u, v) [n, 2]."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        u, v = np.asarray(local, np.float64).T
        return np.stack([self.x + u * cosine - v * sine, self.y + u * sine + v * cosine], axis=1)

    def to_local(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return local u and v of world coordinates, which broadcast."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        right, down = x - self.x, y - self.y
        return right * cosine + down * sine, down * cosine - right * sine

    def moved(self, u: float, v: float, turn: float = 0.0) -> "Frame":
        """Return the frame at local (u, v), turned clockwise by `turn` radians."""
        x, y = self.to_world([(u, v)])[0].tolist()
        return Frame(x, y, self.angle + turn)


@dataclass(frozen=True, slots=True)
class PixelGrid:
    """The pixels of a window of the world."""

    window: Window
    gsd_m: float

    @property
    def rows_columns(self) -> tuple[Array, Array]:
        """Row numbers [height, 1] and column numbers [1, width], int64."""
        window = self.window
        return np.arange(window.top, window.bottom)[:, None], np.arange(window.left, window.right)[None, :]

    @property
    def axes(self) -> tuple[Array, Array]:
        """World y [height] and x [width] of the pixel centers, meters."""
        rows, columns = self.rows_columns
        return (rows[:, 0] + 0.5) * self.gsd_m, (columns[0] + 0.5) * self.gsd_m

    def local(self, frame: Frame) -> tuple[Array, Array]:
        """Return u and v of the pixel centers in a frame, [height, width]."""
        y, x = self.axes
        return frame.to_local(x[None, :], y[:, None])

    def touching(self, bounds: Array, *, room_px: int = 2) -> list[int]:
        """Return the indices of the bounds [n, 4] in meters that reach within `room_px` of the grid."""
        x1, y1, x2, y2 = (bounds / self.gsd_m).T
        window = self.window
        beside = (x1 >= window.right + room_px) | (x2 <= window.left - room_px)
        above = (y1 >= window.bottom + room_px) | (y2 <= window.top - room_px)
        return np.flatnonzero(~(beside | above)).tolist()


def window_around(bounds_px: Bounds, *, margin: int) -> Window:
    """Return the smallest window that contains bounds in pixels and a margin."""
    x1, y1, x2, y2 = bounds_px
    left, top = math.floor(x1) - margin, math.floor(y1) - margin
    return Window(top, left, math.ceil(y2) + margin - top, math.ceil(x2) + margin - left)


def enlarged(window: Window, margin: int) -> Window:
    """Return a window with a margin on each side."""
    height, width = window.height + 2 * margin, window.width + 2 * margin
    return Window(window.top - margin, window.left - margin, height, width)


def overlap(here: Window, there: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the slices of two windows that are their common part; empty if there is none."""
    top, left = max(here.top, there.top), max(here.left, there.left)
    bottom, right = max(top, min(here.bottom, there.bottom)), max(left, min(here.right, there.right))
    one, other = (
        (slice(top - each.top, bottom - each.top), slice(left - each.left, right - each.left)) for each in (here, there)
    )
    return one, other


def bounds_of(points: Array) -> Bounds:
    """Return the bounds of points [n, 2]."""
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2
