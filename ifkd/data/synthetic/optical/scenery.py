"""The look of a place: sea, land, clouds, haze, and the sensor's optics and noise."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import Conditions
from ifkd.data.synthetic.geometry import PixelGrid, Point
from ifkd.data.synthetic.noise import Noise, filtered, pixel_noise, smoothstep, uniform

CLOUD = np.array([226, 229, 233], np.float32)
HAZE = np.array([150, 164, 176], np.float32)
FOAM = np.array([208, 218, 218], np.float32)
GLINT = np.array([214, 216, 206], np.float32)
SAND = np.array([194, 180, 146], np.float32)
CLOUD_HEIGHT_M = 260.0  # Low, so that a tile shows a cloud together with its shadow
CLOUD_SIZES = (620.0, 6, 0.55)
MAX_COVER = 0.9  # Opacity in the middle of a cloud
DEEP = np.array([(26, 52, 66), (22, 44, 70), (30, 62, 58), (44, 66, 62), (62, 80, 76)], np.float32)
SHALLOW = np.array([(58, 108, 108), (46, 116, 128), (84, 116, 94), (104, 116, 90), (122, 126, 104)], np.float32)
TREES = np.array([(44, 60, 38), (62, 68, 46), (50, 64, 44)], np.float32)
GRASS = np.array([(92, 104, 62), (126, 120, 82), (108, 112, 72)], np.float32)
SOIL = np.array([(150, 132, 100), (172, 152, 118), (160, 144, 112)], np.float32)


@dataclass(frozen=True, slots=True)
class Weather:
    """The look of one place."""

    shadow: Point
    """Shift of shadows in x and y, meters by meter of height."""
    look: int
    waves: float
    glint: float
    """Strengths of the sea's texture and of the sun's reflection, 0 to about 1."""
    haze: float
    gain: float
    cloud_level: float
    land_level: float
    """Clouds and land are where their fields, which are about standard normal, are above these."""


def make_weather(conditions: Conditions, rng: np.random.Generator, *, wide: bool) -> Weather:
    """Return the conditions of one place; in a `wide` one, clouds and land cover their fractions of its area."""
    azimuth, reach = rng.uniform(0, 2 * math.pi), 1 / math.tan(math.radians(rng.uniform(38, 68)))
    cloud_level = rng.uniform(0.7, 1.7) if rng.random() < conditions.cloud_fraction else math.inf
    if wide and conditions.cloud_fraction > 0:
        cloud_level = 2.4 - 1.6 * conditions.cloud_fraction
    hazy = rng.random() < conditions.haze_fraction and not wide
    # A logistic approximation of the normal quantile.
    land = min(max(conditions.land_fraction, 0.002), 0.998)
    return Weather(
        shadow=(math.cos(azimuth) * reach, math.sin(azimuth) * reach), look=int(rng.integers(2**16)),
        waves=2 * conditions.waves * rng.uniform(0.5, 1.5), glint=conditions.glint * max(0.0, rng.uniform(-1.0, 1.6)),
        haze=rng.uniform(0.08, 0.30) if hazy else rng.uniform(0.0, 0.05), gain=rng.uniform(0.9, 1.16),
        cloud_level=cloud_level,
        land_level=math.log((1 - land) / land) / 1.702 + (0.0 if wide else rng.uniform(-0.5, 0.7)),
    )  # fmt: skip


def cloud_cover(weather: Weather, seed: int, y: Array, x: Array) -> Array:
    """Return the opacity of clouds at positions of one shape, 0 to 1."""
    return smoothstep((Noise(seed, *CLOUD_SIZES).at(y, x) - np.float32(weather.cloud_level)) * 0.75) * MAX_COVER


def add_sky(grid: PixelGrid, color: Array, weather: Weather, seed: int) -> Array:
    """Return the image [rows, columns, 3] under clouds and haze."""
    if math.isfinite(weather.cloud_level):
        clouds, level, (y, x) = Noise(seed, *CLOUD_SIZES), np.float32(weather.cloud_level), grid.axes
        shift_x, shift_y = (shift * CLOUD_HEIGHT_M for shift in weather.shadow)
        color = color * (1.0 - 0.5 * smoothstep((clouds.grid(y - shift_y, x - shift_x) - level) * 0.9))[..., None]
        color += (CLOUD - color) * (MAX_COVER * smoothstep((clouds.grid(y, x) - level) * 0.75))[..., None]
    return np.asarray(color + (HAZE - color) * np.float32(weather.haze)) * np.float32(weather.gain)


def capture(grid: PixelGrid, color: Array, conditions: Conditions, seed: int) -> Array:
    """Return the sensor's uint8 image of a grid: blurred, with noise from a `color` with a margin."""
    margin = (len(color) - grid.window.height) // 2
    if margin:
        taps = np.exp(-0.5 * (np.arange(-margin, margin + 1) / conditions.blur_px) ** 2)
        color = filtered(color, (taps / taps.sum()).astype(np.float32))
    if conditions.noise_dn > 0:
        gray, *bands = (pixel_noise(seed + band, *grid.rows_columns) for band in range(4))
        noise = np.stack(bands, axis=2) * np.float32(0.6) + (gray * np.float32(0.8))[..., None]
        color = color + noise * np.sqrt(0.4 + color.clip(0, 255) * np.float32(0.006)) * np.float32(conditions.noise_dn)
    return np.rint(color.clip(0, 255)).astype(np.uint8)


def sea_color(grid: PixelGrid, height: Array, weather: Weather, seed: int) -> Array:
    """Return the sea as float32 [rows, columns, 3], 0 to 255."""
    y, x = grid.axes
    deep, shallow = (colors[weather.look % len(colors)] for colors in (DEEP, SHALLOW))
    chop, broad = Noise(seed + 1, 6.5, 2, 0.9).grid(y, x), Noise(seed + 2, 700.0, 4, 0.7).grid(y, x)
    clear = np.exp(np.minimum(height, 0.0) * 5.0 + 0.3 * broad).clip(0.0, 1.0)
    light = 1.0 + 0.045 * broad + 0.034 * weather.waves * chop * (1.0 + 0.3 * broad)
    color = _mix(deep, shallow, clear) * light[..., None]
    if weather.glint > 0:
        field = smoothstep(0.32 + 0.28 * Noise(seed + 3, 900.0, 2).grid(y, x)) * weather.glint
        crests = 0.5 + 0.5 * np.tanh(chop)
        flash = uniform(seed + 4, *grid.rows_columns) > 1.0 - 0.05 * field * crests
        color = _mix(color, GLINT, np.clip(field * (0.10 + 0.16 * crests + 0.38 * flash), 0.0, 0.8))
    surf = np.exp(-(((height + 0.018) / 0.009) ** 2) / 2) * (0.35 + 0.15 * chop)
    return np.asarray(_mix(color, FOAM, np.clip(surf, 0.0, 0.8)), np.float32)


def land_color(grid: PixelGrid, height: Array, weather: Weather, seed: int) -> Array:
    """Return the ground as float32 [rows, columns, 3], 0 to 255."""
    y, x = grid.axes
    trees, grass, soil = (colors[weather.look % len(colors)] for colors in (TREES, GRASS, SOIL))
    growth, fine = Noise(seed + 1, 420.0, 6, 0.65).grid(y, x), Noise(seed + 2, 9.0, 2, 0.8).grid(y, x)
    color = _mix(grass * 0.92, soil, smoothstep(-0.8 - 1.2 * growth) * 0.8)
    inland = smoothstep(12.0 * height - 1.2)
    color = _mix(color, trees, smoothstep(2.5 * (growth - 0.55) + 0.6 * fine) * inland)
    color = _mix(color, SAND, smoothstep(1.6 - height / (0.045 + 0.015 * growth).clip(0.012)))
    color *= (1.0 + 0.07 * fine - 0.03 * growth - 0.3 * smoothstep(1.0 - height / 0.014))[..., None]
    return np.asarray(color, np.float32)


def _mix(below: Array, above: Array, cover: Array) -> Array:
    return np.asarray(below + (above - below) * cover[..., None])
