"""Oriented boxes: rectangles whose long side has any direction.

An oriented box is `center x, center y, length, width, angle`, float32, in pixels and degrees. The length is at least
the width. The angle, from 0 to below 180, is the direction of the long side from +x (right) towards +y (down), so it
grows clockwise on the screen; that of a square is below 90.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
"""Corners of a unit square along the long and the short side, in the order of `corners`."""
PAIRS_AT_ONCE = 1 << 14
"""Pairs whose intersection is computed at a time, so that they stay in the processor's cache."""
ROUNDING = 1e-12
"""Fraction of a box below which an intersection is none."""
_PAIRS = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
"""All pairs of four corners: their hull has sides among these, in whatever order the corners come."""


def canonical(oriented: NDArray[Any]) -> NDArray[Any]:
    """Return boxes [n, 5] of any side order and angle in the form above, float32."""
    x, y, length, width, angle = oriented.astype(np.float64).T
    angle = np.where(width > length, angle + 90, angle)
    angle = np.mod(angle, np.where(width == length, 90.0, 180.0))
    sides = np.maximum(length, width), np.minimum(length, width)
    result = np.stack([x, y, *sides, angle], axis=1).astype(np.float32)
    result[:, 4] %= 180  # an angle just below 180 may have been rounded up
    return result


def corners(oriented: NDArray[Any]) -> NDArray[Any]:
    """Return the corners [n, 4, 2] (x, y) of boxes [n, 5], float32, clockwise on the screen.

    The first corner is the one that is at the top left when the angle is 0.
    """
    center, sides, angle = oriented[:, :2], oriented[:, 2:4], np.deg2rad(oriented[:, 4].astype(np.float64))
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    steps = _SIGNS[None] * sides[:, None, :]
    found = center[:, None] + steps[..., :1] * along[:, None] + steps[..., 1:] * across[:, None]
    return found.astype(np.float32)


def from_corners(points: NDArray[Any]) -> NDArray[Any]:
    """Return the smallest oriented boxes [n, 5] around four points each, [n, 4, 2] in any order."""
    points = points.astype(np.float64)
    sides = points[:, _PAIRS[:, 1]] - points[:, _PAIRS[:, 0]]
    angles = np.arctan2(sides[..., 1], sides[..., 0])  # [n, 6]; one side of the smallest rectangle is on the hull
    along = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    axes = np.stack([along, across], axis=2)  # [n, 6, 2 axes, 2]
    # Relative to the first point, because coordinates of scenes are large.
    first = points[:, :1]
    positions = np.einsum("nsad,npd->nsap", axes, points - first)
    low, high = positions.min(axis=3), positions.max(axis=3)
    extent, middle = high - low, (high + low) / 2
    rows, best = np.arange(len(points)), extent.prod(axis=2).argmin(axis=1)
    center = first[:, 0] + np.einsum("na,nad->nd", middle[rows, best], axes[rows, best])
    angle = np.rad2deg(angles[rows, best])[:, None]
    return canonical(np.concatenate([center, extent[rows, best], angle], axis=1))


def envelopes(oriented: NDArray[Any]) -> NDArray[Any]:
    """Return the upright boxes x1, y1, x2, y2 [n, 4] around boxes [n, 5], float32."""
    points = corners(oriented)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def translate(oriented: NDArray[Any], *, dx: float = 0.0, dy: float = 0.0) -> NDArray[Any]:
    """Return boxes [n, 5] moved by (dx, dy) pixels, to the right and down."""
    return oriented + np.array([dx, dy, 0, 0, 0], np.float32)


def resize(oriented: NDArray[Any], size: tuple[int, int], to: tuple[int, int]) -> NDArray[Any]:
    """Return boxes [n, 5] of an image of `size` (height, width) after it is resized `to` another.

    With unequal factors a rectangle becomes a parallelogram; the smallest box around it is returned.
    """
    factors = np.array([to[1] / size[1], to[0] / size[0]])
    if factors[0] == factors[1]:
        return (oriented * np.array([*factors, *factors, 1.0])).astype(np.float32)
    return from_corners(corners(oriented) * factors)


def from_upright(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return upright boxes [n, 4] as oriented boxes [n, 5], float32, at 0 or 90 degrees."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:]
    return canonical(np.concatenate([(low + high) / 2, high - low, np.zeros((len(boxes), 1))], axis=1))


def areas(oriented: NDArray[Any]) -> NDArray[Any]:
    """Return the areas of boxes [n, 5], float64 [n]."""
    sides = oriented[:, 2:4].astype(np.float64)
    return sides[:, 0] * sides[:, 1]


def pairwise_intersection(oriented: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the areas, float64 [n, m], that boxes [n, 5] and [m, 5] have in common."""
    shared = np.zeros((len(oriented), len(others)))
    around, around_others = envelopes(oriented), envelopes(others)
    touching = (around[:, None, :2] < around_others[:, 2:]) & (around_others[:, :2] < around[:, None, 2:])
    rows, columns = np.nonzero(touching.all(axis=2))
    shared[rows, columns] = paired_intersection(oriented[rows], others[columns])
    return shared


def paired_intersection(oriented: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the area, float64 [n], that each of the boxes [n, 5] has in common with the other of its row."""
    starts = range(0, len(oriented), PAIRS_AT_ONCE)
    parts = (slice(start, start + PAIRS_AT_ONCE) for start in starts)
    return np.concatenate([np.zeros(0), *(_paired_intersection(oriented[one], others[one]) for one in parts)])


def _paired_intersection(oriented: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the area of each pair, as the sum of the areas between the edges of the other box and the long side.

    In the frame of the first box, which spans 0 to its length and 0 to its width, each edge of the other is limited to
    that range: first in x, then in y, where it becomes level. The sums change continuously with the boxes, so that
    equal or touching edges need no exception.
    """
    one, other = oriented.astype(np.float64).T, others.astype(np.float64).T
    length, width = one[2], one[3]
    turn = np.deg2rad(one[4])
    right, down = other[0] - one[0], other[1] - one[1]
    center = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    turn = np.deg2rad(other[4] - one[4])
    long, wide = other[2] * _SIGNS[:, :1], other[3] * _SIGNS[:, 1:]
    x = center[0] + length / 2 + long * np.cos(turn) - wide * np.sin(turn)  # [4 corners, n]
    y = center[1] + width / 2 + long * np.sin(turn) + wide * np.cos(turn)
    step, rise = np.roll(x, -1, axis=0) - x, np.roll(y, -1, axis=0) - y
    start, end = _within(x, step, length)
    y, rise, step = y + start * rise, (end - start) * rise, (end - start) * step
    start, end = _within(y, rise, width)
    low, high = y.clip(0, width), (y + rise).clip(0, width)
    height = start * low + (end - start) * (low + high) / 2 + (1 - end) * high
    shared = np.abs((step * height).sum(axis=0))
    return np.where(shared > ROUNDING * length * width, shared, 0.0)


def _within(start: NDArray[Any], step: NDArray[Any], limit: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the fractions of a step from `start`, both [4, n], at which it enters and leaves the range 0 to `limit`.

    Both are 0 for a step of 0.
    """
    none = np.zeros_like(start)
    one = np.divide(-start, step, out=none.copy(), where=step != 0).clip(0, 1)
    other = np.divide(limit - start, step, out=none, where=step != 0).clip(0, 1)
    return np.minimum(one, other), np.maximum(one, other)


def corner_distances(oriented: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the largest distance of corresponding corners, pixels [n], of pairs of boxes [n, 5] and [n, 5].

    Corners correspond in the order, of the four, with the smallest such distance, because a box at 179 degrees is close
    to one at 0, and a square to one turned by 90.
    """
    points, theirs = corners(oriented), corners(others)
    orders = [np.linalg.norm(points - np.roll(theirs, turn, axis=1), axis=2).max(axis=1) for turn in range(4)]
    return np.min(orders, axis=0)
