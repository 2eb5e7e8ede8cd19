"""The sea's surface: depth colour, swell, chop, wind streaks, glint and surf."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.noise import Fractal, Noise, Streaks, smoothstep, uniform
from ifkd.data.synthetic.weather import Weather

SURF = np.array([206, 214, 210], np.float32)
GLINT = np.array([214, 216, 206], np.float32)


@dataclass(frozen=True, slots=True)
class Grid:
    """A window of the world's pixels, with the metres of their centres."""

    rows: Array
    """Row numbers, int64."""
    columns: Array
    """Column numbers, int64."""
    gsd_m: float

    @property
    def y(self) -> Array:
        """Metres downwards."""
        return (self.rows + 0.5) * self.gsd_m

    @property
    def x(self) -> Array:
        """Metres to the right."""
        return (self.columns + 0.5) * self.gsd_m

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2, metres, outer corners."""
        return (
            float(self.columns[0] * self.gsd_m),
            float(self.rows[0] * self.gsd_m),
            float((self.columns[-1] + 1) * self.gsd_m),
            float((self.rows[-1] + 1) * self.gsd_m),
        )


def sea_colour(grid: Grid, height: Array, weather: Weather, seed: int) -> Array:
    """Return the sea as float32 [rows, columns, 3], 0 to 255."""
    y, x = grid.y, grid.x
    depth = np.maximum(-height, 0.0)
    shoals = Fractal(seed + 1, 260.0, 4).grid(y, x)
    clear = np.exp(-depth * 5.0 + 0.35 * shoals).clip(0.0, 1.0)
    mottle = Fractal(seed + 2, 700.0, 3).grid(y, x)
    clear = np.clip(clear + 0.05 * mottle, 0.0, 1.0)[..., None]
    colour = weather.deep + (weather.shallow - weather.deep) * clear
    light = 1.0 + 0.045 * mottle + weather.waves * _relief(grid, weather, seed)
    colour *= light[..., None]
    if weather.glint > 0:
        colour += (GLINT - colour) * _glint(grid, weather, seed)[..., None]
    surf = _surf(grid, height, seed)[..., None]
    result: Array = colour + (SURF - colour) * surf
    return result.astype(np.float32)


def _relief(grid: Grid, weather: Weather, seed: int) -> Array:
    """Return the sunlit relief of the waves, about 0."""
    y, x = grid.y, grid.x
    swell = np.zeros((len(y), len(x)), np.float32)
    rng = np.random.default_rng([seed, 3])
    for wavelength in (68.0, 47.0, 33.0, 24.0, 17.0, 12.5):
        direction = weather.wind + rng.normal(0.0, 0.28)
        phase = rng.uniform(0, 2 * math.pi)
        turns = 2 * math.pi / wavelength
        # sin(a + b) on a grid is an outer product, which spares the sines of all pixels.
        a = turns * math.cos(direction) * x + phase
        b = turns * math.sin(direction) * y
        swell += np.outer(np.cos(b), np.sin(a)).astype(np.float32)
        swell += np.outer(np.sin(b), np.cos(a)).astype(np.float32)
    gusts = smoothstep(0.5 + 0.35 * Noise(seed + 4, 330.0).grid(y, x))
    chop = Noise(seed + 5, 3.1).grid(y, x) * np.float32(0.030) + Noise(seed + 6, 6.5).grid(y, x) * np.float32(0.026)
    streaks = Streaks(seed + 7, 420.0, 26.0, weather.wind).grid(y, x)
    relief: Array = (0.010 * swell + chop) * (0.45 + gusts) + 0.020 * streaks
    return relief


def _glint(grid: Grid, weather: Weather, seed: int) -> Array:
    """Return how much of each pixel is the sun's reflection."""
    patches = Fractal(seed + 8, 900.0, 3).grid(grid.y, grid.x)
    field = smoothstep(0.32 + 0.28 * patches) * np.float32(weather.glint)
    sparkle = uniform(seed + 9, grid.rows[:, None], grid.columns[None, :])
    crests = 0.5 + 0.5 * np.tanh(Noise(seed + 6, 6.5).grid(grid.y, grid.x))
    flash = (sparkle > 1.0 - 0.05 * field * crests) * np.float32(0.38)
    share: Array = np.clip(field * (0.10 + 0.16 * crests) + flash * field, 0.0, 0.8)
    return share


def _surf(grid: Grid, height: Array, seed: int) -> Array:
    """Return the white of breaking waves along natural shores."""
    lines = Fractal(seed + 10, 46.0, 3).grid(grid.y, grid.x)
    belt = np.exp(-((height + 0.018 - 0.010 * lines) ** 2) / (2 * 0.009**2))
    share: Array = belt * np.clip(0.35 + 0.4 * lines, 0.0, 0.85) * (height < 0.02)
    return share
