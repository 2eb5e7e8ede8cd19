"""Randomness that is a function of place: any part of a world can be computed alone and joins its neighbours.

Fields are given on the grid of two ascending axes, `y` and `x`, in metres. Every value depends on its own
coordinates only, never on the extent of the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array

UNIT_STD = 3.61
"""Brings the spline of uniform lattice values in [-1, 1] to a standard deviation of about 1."""


def hashed(seed: int, rows: Array, columns: Array) -> Array:
    """Return uint32 hashes of integer places; `rows` and `columns` broadcast."""
    start = np.asarray(rows).astype(np.uint32) + np.array(seed & 0xFFFFFFFF, np.uint32)
    mixed = _stirred(start) + np.asarray(columns).astype(np.uint32) * np.uint32(0x9E3779B1)
    return _stirred(mixed)


def uniform(seed: int, rows: Array, columns: Array) -> Array:
    """Return float32 in [0, 1) for integer places."""
    top = hashed(seed, rows, columns) >> np.uint32(8)
    return top.astype(np.float32) * np.float32(2.0**-24)


def pixel_noise(seed: int, rows: Array, columns: Array) -> Array:
    """Return nearly Gaussian float32 noise of unit deviation, independent from pixel to pixel."""
    bits = hashed(seed, rows[:, None], columns[None, :])
    total = np.zeros(bits.shape, np.float32)
    for shift in (0, 8, 16, 24):
        total += ((bits >> np.uint32(shift)) & np.uint32(255)).astype(np.float32)
    return (total - np.float32(510.0)) * np.float32(1 / 147.8)


def smoothstep(value: Array) -> Array:
    """Return the smooth ramp that is 0 below 0 and 1 above 1."""
    clipped = np.clip(value, 0.0, 1.0)
    ramp: Array = clipped * clipped * (3.0 - 2.0 * clipped)
    return ramp


def spline(lattice: Callable[[Array, Array], Array], step_m: float, y: Array, x: Array) -> Array:
    """Return the cubic B-spline surface over lattice values as float32 [len(y), len(x)].

    Args:
        lattice: Gives values [rows, columns] for ascending integer row and column numbers; the number times
            `step_m` is the place.
        step_m: Distance of lattice points.
        y: Rows of the grid, metres.
        x: Columns of the grid, metres.
    """
    first_row, row_weights = _weights(y, step_m)
    first_column, column_weights = _weights(x, step_m)
    rows = np.arange(first_row[0], first_row[-1] + 4)
    columns = np.arange(first_column[0], first_column[-1] + 4)
    values = lattice(rows, columns).astype(np.float32)
    across = sum(values[:, first_column - columns[0] + tap] * column_weights[tap][None, :] for tap in range(4))
    assert isinstance(across, np.ndarray)
    result = across[first_row - rows[0]] * row_weights[0][:, None]
    for tap in range(1, 4):
        result += across[first_row - rows[0] + tap] * row_weights[tap][:, None]
    field: Array = result
    return field


@dataclass(frozen=True, slots=True)
class Noise:
    """A smooth random field of one wavelength, about normal with mean 0 and deviation 1."""

    seed: int
    wavelength_m: float
    """Distance of lattice points; features are about twice as long."""

    def grid(self, y: Array, x: Array) -> Array:
        """Return the field on a grid, float32 [len(y), len(x)]."""
        return spline(self._lattice, self.wavelength_m, y, x)

    def at(self, y: Array, x: Array) -> Array:
        """Return the field at places `y`, `x` of one shape, float32."""
        first_row, row_weights = _weights(np.asarray(y, np.float64), self.wavelength_m)
        first_column, column_weights = _weights(np.asarray(x, np.float64), self.wavelength_m)
        taps = np.arange(4).reshape(4, *(1,) * first_row.ndim)
        values = _centred(self.seed, (first_row + taps)[:, None], (first_column + taps)[None])
        across = values[:, 0] * column_weights[0]
        for tap in range(1, 4):
            across += values[:, tap] * column_weights[tap]
        total = across[0] * row_weights[0]
        for tap in range(1, 4):
            total += across[tap] * row_weights[tap]
        field: Array = total
        return field

    def _lattice(self, rows: Array, columns: Array) -> Array:
        return _centred(self.seed, rows[:, None], columns[None, :])


@dataclass(frozen=True, slots=True)
class Fractal:
    """A sum of ever finer noises, about normal with mean 0 and deviation 1."""

    seed: int
    longest_m: float
    octaves: int
    gain: float = 0.5
    """Amplitude of an octave relative to the one twice as long."""

    def grid(self, y: Array, x: Array) -> Array:
        """Return the field on a grid, float32 [len(y), len(x)]."""
        total = np.zeros((len(y), len(x)), np.float32)
        for noise, amplitude in self._parts():
            total += noise.grid(y, x) * amplitude
        return total

    def at(self, y: Array, x: Array) -> Array:
        """Return the field at places `y`, `x` of one shape, float32."""
        total = np.zeros(np.shape(y), np.float32)
        for noise, amplitude in self._parts():
            total += noise.at(y, x) * amplitude
        return total

    def _parts(self) -> list[tuple[Noise, np.float32]]:
        amplitudes = self.gain ** np.arange(self.octaves)
        amplitudes = (amplitudes / np.sqrt((amplitudes**2).sum())).astype(np.float32)
        return [
            (Noise(self.seed * 31 + octave, self.longest_m / 2**octave), amplitude)
            for octave, amplitude in enumerate(amplitudes)
        ]


@dataclass(frozen=True, slots=True)
class Streaks:
    """A random field drawn out along a direction, deviation about 1."""

    seed: int
    length_m: float
    width_m: float
    angle: float
    """Direction of the streaks, radians from the x axis towards the y axis."""

    def grid(self, y: Array, x: Array) -> Array:
        """Return the field on a grid, float32 [len(y), len(x)]."""
        return spline(self._lattice, self.width_m / 2.0, y, x) * np.float32(1.4)

    def _lattice(self, rows: Array, columns: Array) -> Array:
        y, x = np.meshgrid(rows * (self.width_m / 2.0), columns * (self.width_m / 2.0), indexing="ij")
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        along = (x * cosine + y * sine) / self.length_m
        across = (y * cosine - x * sine) / self.width_m
        return Noise(self.seed, 1.0).at(across, along)


def _stirred(bits: Array) -> Array:
    """Return a one-to-one scrambling of uint32 numbers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    result: Array = bits ^ (bits >> np.uint32(16))
    return result


def _centred(seed: int, rows: Array, columns: Array) -> Array:
    values: Array = (uniform(seed, rows, columns) * np.float32(2.0) - np.float32(1.0)) * np.float32(UNIT_STD)
    return values


def _weights(axis: Array, step_m: float) -> tuple[Array, list[Array]]:
    """Return the first of four lattice numbers for each coordinate, and the four weights."""
    place = axis / step_m
    cell = np.floor(place)
    t = place - cell
    taps = [
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    ]
    return cell.astype(np.int64) - 1, [tap.astype(np.float32) for tap in taps]
