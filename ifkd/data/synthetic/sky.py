"""What is between ground and sensor: clouds with their shadows, haze, optics, noise."""

import math

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.noise import Fractal, pixel_noise, smoothstep
from ifkd.data.synthetic.sea import Grid
from ifkd.data.synthetic.weather import Weather

CLOUD = np.array([226, 229, 233], np.float32)
HAZE = np.array([150, 164, 176], np.float32)
CLOUD_HEIGHT_M = 260.0
"""Low, so that a tile shows a cloud together with its shadow."""
THICKEST = 0.9
"""Share of a pixel that the middle of a cloud covers."""


def cloud_cover(weather: Weather, seed: int, y: Array, x: Array) -> Array:
    """Return how much clouds cover at places of one shape, 0 to 1."""
    field = _clouds(seed).at(y, x)
    return smoothstep((field - np.float32(weather.cloud_level)) * 0.75) * THICKEST


def with_sky(grid: Grid, colour: Array, weather: Weather, seed: int) -> Array:
    """Return the picture under clouds and haze, float32 [rows, columns, 3]."""
    if math.isfinite(weather.cloud_level):
        clouds, level = _clouds(seed), np.float32(weather.cloud_level)
        shift_y, shift_x = weather.sun.y * CLOUD_HEIGHT_M, weather.sun.x * CLOUD_HEIGHT_M
        shade = smoothstep((clouds.grid(grid.y - shift_y, grid.x - shift_x) - level) * 0.9)
        colour = colour * (1.0 - 0.5 * shade)[..., None]
        field = clouds.grid(grid.y, grid.x)
        cover = (smoothstep((field - level) * 0.75) * THICKEST)[..., None]
        white = CLOUD * (1.0 + 0.05 * np.tanh(field - level - 0.8))[..., None]
        colour = colour + (white - colour) * cover
    result: Array = colour + (HAZE - colour) * np.float32(weather.haze)
    return result


def sensed(grid: Grid, colour: Array, *, blur_px: float, noise_dn: float, seed: int) -> Array:
    """Return the sensor's uint8 picture: blurred, sampled with noise, less a margin of `blur_margin` pixels."""
    margin = blur_margin(blur_px)
    if margin:
        taps = np.exp(-0.5 * (np.arange(-margin, margin + 1) / blur_px) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        height, width = colour.shape[0] - 2 * margin, colour.shape[1] - 2 * margin
        down = colour[:height] * taps[0]
        for index in range(1, len(taps)):
            down += colour[index : index + height] * taps[index]
        colour = down[:, :width] * taps[0]
        for index in range(1, len(taps)):
            colour += down[:, index : index + width] * taps[index]
    if noise_dn > 0:
        rows = grid.rows[margin : len(grid.rows) - margin]
        columns = grid.columns[margin : len(grid.columns) - margin]
        common = pixel_noise(seed, rows, columns)[..., None]
        own = np.stack([pixel_noise(seed + 1 + band, rows, columns) for band in range(3)], axis=2)
        strength = np.float32(noise_dn) * np.sqrt(0.4 + colour.clip(0, 255) * np.float32(0.6 / 100))
        colour = colour + (common * np.float32(0.8) + own * np.float32(0.6)) * strength
    return np.rint(colour.clip(0, 255)).astype(np.uint8)


def blur_margin(blur_px: float) -> int:
    """Return by how many pixels a window must be larger on each side than the picture `sensed` gives."""
    return math.ceil(3 * blur_px) if blur_px > 0.05 else 0


def _clouds(seed: int) -> Fractal:
    return Fractal(seed, 620.0, 6, 0.55)
