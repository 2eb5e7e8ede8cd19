"""Random fields that are functions of position, so that any part can be computed alone and joins its neighbors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ifkd.core.detections import Array

UNIT_STD = 3.61  # Scales the spline of uniform lattice values in [-1, 1] to a standard deviation of about 1


@dataclass(frozen=True, slots=True)
class Noise:
    """A smooth random field, about normal with mean 0 and standard deviation 1."""

    seed: int
    wavelength_m: float
    """Distance of the lattice points of the longest octave; features are about twice as long."""
    octaves: int = 1
    """Fields that are summed, each of half the wavelength of the one before, and `gain` times its amplitude."""
    gain: float = 0.5

    def grid(self, y: Array, x: Array) -> Array:
        """Return the field on the grid of two ascending axes in meters, float32 [len(y), len(x)]."""
        total = np.zeros((len(y), len(x)), np.float32)
        for seed, step, amplitude in zip(*(part.tolist() for part in self._parts()), strict=True):
            total += spline(partial(_centered, seed), step, y, x) * np.float32(amplitude)
        return total

    def at(self, y: Array, x: Array) -> Array:
        """Return the field at positions `y`, `x` of one shape in meters, float32."""
        ones = (1,) * np.ndim(y)
        seeds, steps, amplitudes = (part.reshape(-1, *ones) for part in self._parts())
        (first_row, row_weights), (first_column, column_weights) = _taps(y / steps), _taps(x / steps)
        numbers = np.arange(4).reshape(4, 1, *ones)
        values = _centered(seeds, (first_row + numbers)[:, None], (first_column + numbers)[None])
        across = (values * column_weights).sum(axis=1)
        return np.asarray(((across * row_weights).sum(axis=0) * amplitudes).sum(axis=0))

    def _parts(self) -> tuple[Array, Array, Array]:
        """Return seeds, lattice steps and amplitudes of the octaves, each [octaves]."""
        octaves = np.arange(self.octaves)
        amplitudes = self.gain**octaves / np.sqrt((self.gain ** (2 * octaves)).sum())
        return self.seed * 31 + octaves, self.wavelength_m / 2.0**octaves, amplitudes.astype(np.float32)


def spline(lattice: Callable[[Array, Array], Array], step_m: float, y: Array, x: Array) -> Array:
    """Return the cubic B-spline surface over `lattice(rows, columns)` at axes in meters, float32 [len(y), len(x)]."""
    (first_row, row_weights), (first_column, column_weights) = _taps(y / step_m), _taps(x / step_m)
    rows, columns = (np.arange(first[0], first[-1] + 4) for first in (first_row, first_column))
    values = np.asarray(lattice(rows[:, None], columns[None, :]), np.float32)
    across, field = np.zeros((len(rows), len(x)), np.float32), np.zeros((len(y), len(x)), np.float32)
    for tap in range(4):
        across += values[:, first_column - columns[0] + tap] * column_weights[tap]
    for tap in range(4):
        field += across[first_row - rows[0] + tap] * row_weights[tap][:, None]
    return field


def hashed(seed: int | Array, rows: Array, columns: Array) -> Array:
    """Return uint32 hashes of integer positions; all arguments broadcast."""
    # The factor keeps seeds apart, which would otherwise give the same values one row further.
    start = np.asarray(rows).astype(np.uint32) + np.atleast_1d(seed).astype(np.uint32) * np.uint32(0x85EBCA77)
    return _mixed(_mixed(start) ^ _mixed(np.asarray(columns).astype(np.uint32) * np.uint32(0x9E3779B1)))


def uniform(seed: int | Array, rows: Array, columns: Array) -> Array:
    """Return float32 in [0, 1) for integer positions."""
    return (hashed(seed, rows, columns) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def pixel_noise(seed: int, rows: Array, columns: Array) -> Array:
    """Return nearly Gaussian float32 noise of unit deviation, white over integer positions, which broadcast."""
    # The number of ones among 32 random bits is binomial: mean 16, variance 8.
    ones = np.bitwise_count(hashed(seed, rows, columns)).astype(np.float32)
    return (ones - np.float32(16.0)) * np.float32(8.0**-0.5)


def smoothstep(value: Array) -> Array:
    """Return the smooth ramp that is 0 below 0 and 1 above 1."""
    clipped = np.clip(value, 0.0, 1.0)
    return np.asarray(clipped * clipped * (3.0 - 2.0 * clipped))


def filtered(image: Array, taps: Array) -> Array:
    """Return an image [rows, columns, ...] filtered by taps [2 n + 1] along both axes, without a margin of n."""
    height, width = (length - len(taps) + 1 for length in image.shape[:2])
    down = np.asarray(sum(image[index : index + height] * tap for index, tap in enumerate(taps)))
    return np.asarray(sum(down[:, index : index + width] * tap for index, tap in enumerate(taps)))


def _mixed(bits: Array) -> Array:
    """Return a one-to-one scrambling of uint32 numbers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray(bits ^ (bits >> np.uint32(16)))


def _centered(seed: int | Array, rows: Array, columns: Array) -> Array:
    return (uniform(seed, rows, columns) - np.float32(0.5)) * np.float32(2 * UNIT_STD)


def _taps(position: Array) -> tuple[Array, Array]:
    """Return the first of four lattice numbers for each coordinate in steps, and the four weights [4, ...]."""
    cell = np.floor(position)
    t = position - cell
    s = 1 - t
    weights = np.stack([s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3]) / 6
    return cell.astype(np.int64) - 1, weights.astype(np.float32)
