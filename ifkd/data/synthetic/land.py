"""The ground: beaches, grass, trees, fields, and the paved ground of harbours."""

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.drawing import Frame
from ifkd.data.synthetic.noise import Fractal, Noise, smoothstep, uniform
from ifkd.data.synthetic.sea import Grid
from ifkd.data.synthetic.terrain import APRON_M, Terrain
from ifkd.data.synthetic.weather import Weather

SAND = np.array([194, 180, 146], np.float32)
WET_SAND = np.array([136, 124, 100], np.float32)
ROCK = np.array([112, 106, 96], np.float32)
PAVED = np.array([158, 154, 145], np.float32)
ASPHALT = np.array([104, 104, 104], np.float32)


def land_colour(grid: Grid, height: Array, weather: Weather, seed: int) -> Array:
    """Return natural and farmed ground as float32 [rows, columns, 3], 0 to 255; valid where there is land."""
    y, x = grid.y, grid.x
    broad = Fractal(seed + 1, 420.0, 4).grid(y, x)
    fine = Fractal(seed + 2, 22.0, 3).grid(y, x)
    tufts = Noise(seed + 9, 4.2).grid(y, x)
    patches = smoothstep(0.5 + 0.9 * Fractal(seed + 10, 110.0, 4, 0.7).grid(y, x))
    light = 1.0 + 0.07 * broad + 0.05 * fine + 0.05 * tufts - 0.13 * patches
    grass = weather.grass * light[..., None] + (weather.soil - weather.grass) * (0.16 * patches)[..., None]
    bare = smoothstep(0.9 * broad - 0.9)[..., None]
    colour = grass + (weather.soil * (1 + 0.05 * fine[..., None]) - grass) * bare
    fields, is_field = _fields(grid, weather, seed)
    farmed = is_field * smoothstep(4.0 * height - 1.0) * (1.0 + 0.03 * fine)
    colour += (fields - colour) * np.clip(farmed, 0, 1)[..., None]
    colour = _with_trees(grid, colour, weather, seed, smoothstep(12.0 * height - 1.2))
    return _with_beach(grid, colour, height, seed)


def with_harbour_ground(grid: Grid, colour: Array, terrain: Terrain, seed: int) -> Array:
    """Return the ground with the aprons of harbours paved."""
    for basin in terrain.basins_near(grid.bounds):
        u, v = basin.frame.to_local(grid.x[None, :], grid.y[:, None])
        inside = (np.abs(u) < basin.half_length_m + 18.0) & (v <= 0.5) & (v > -APRON_M + 20.0)
        if not inside.any():
            continue
        wear = Fractal(seed + 20, 60.0, 5, 0.7).grid(grid.y, grid.x)
        slabs = (np.mod(u, 24.0) < 1.2) | (np.mod(v, 24.0) < 1.2)
        zone = Noise(seed + 21, 90.0).grid(grid.y, grid.x)
        ground = PAVED + (ASPHALT - PAVED) * smoothstep(1.4 * zone)[..., None]
        ground = ground * (1.0 + 0.05 * wear - 0.05 * slabs)[..., None]
        edge = (v > -3.0)[..., None]
        ground = np.where(edge, PAVED * 1.1, ground)
        colour = np.where(inside[..., None], ground, colour).astype(np.float32)
    return colour


def _fields(grid: Grid, weather: Weather, seed: int) -> tuple[Array, Array]:
    """Return the colour of parcels and where there are parcels."""
    rng = np.random.default_rng([seed, 11])
    frame = Frame(0.0, 0.0, rng.uniform(0, np.pi))
    u, v = frame.to_local(grid.x[None, :], grid.y[:, None])
    v = v / 74.0
    row = np.floor(v)
    shift = uniform(seed + 12, row.astype(np.int64), np.zeros(1, np.int64))
    u = u / 128.0 + shift
    column = np.floor(u)
    r, c = row.astype(np.int64), column.astype(np.int64)
    kind, tone = uniform(seed + 13, r, c), uniform(seed + 14, r, c)
    crops = np.stack(
        [weather.grass * 0.85, weather.grass * 1.1, weather.soil, weather.soil * 0.82, weather.trees * 1.45]
    )
    colour = crops[(kind * len(crops)).astype(np.int64)] * (0.88 + 0.24 * tone)[..., None]
    furrows = np.sin((v * 74.0) * (2 * np.pi / 7.5)) * (tone > 0.5)
    colour = colour * (1.0 + 0.025 * furrows)[..., None]
    hedge = (np.minimum(v - row, row + 1 - v) < 0.045) | (np.minimum(u - column, column + 1 - u) < 0.026)
    colour = np.where(hedge[..., None], weather.trees * 1.1, colour)
    where = smoothstep(2.5 * Noise(seed + 15, 520.0).grid(grid.y, grid.x) + 0.7)
    return colour.astype(np.float32), where


def _with_trees(grid: Grid, colour: Array, weather: Weather, seed: int, allowed: Array) -> Array:
    y, x = grid.y, grid.x
    crowns = Noise(seed + 3, 5.0).grid(y, x) * np.float32(0.6) + Noise(seed + 4, 9.0).grid(y, x) * np.float32(0.6)
    density = Fractal(seed + 5, 330.0, 4, 0.6).grid(y, x)
    cover = smoothstep(3.5 * (density - 0.35) + 0.9 * crowns) * allowed
    # The lit side of a crown is where it falls towards the sun: the difference to the field a little further.
    sun = weather.sun
    norm = float(np.hypot(sun.x, sun.y))
    lit = crowns - Noise(seed + 3, 5.0).grid(y + 2.4 * sun.y / norm, x + 2.4 * sun.x / norm) * np.float32(0.6)
    trees = weather.trees * np.clip(1.0 + 0.10 * density + 0.22 * lit + 0.10 * crowns, 0.45, 1.9)[..., None]
    result: Array = colour + (trees - colour) * cover[..., None]
    return result


def _with_beach(grid: Grid, colour: Array, height: Array, seed: int) -> Array:
    y, x = grid.y, grid.x
    rocky = smoothstep(2.0 * Noise(seed + 6, 240.0).grid(y, x) - 0.2)[..., None]
    grain = Fractal(seed + 7, 14.0, 2).grid(y, x)[..., None]
    shore = (SAND + (ROCK - SAND) * rocky) * (1.0 + (0.03 + 0.10 * rocky) * grain)
    width = 0.045 * (1.0 + 0.5 * Noise(seed + 8, 120.0).grid(y, x))
    dry = smoothstep(1.6 - height / np.maximum(width, 0.012))[..., None]
    colour = colour + (shore - colour) * dry
    wet = smoothstep(1.0 - height / 0.014)[..., None]
    result: Array = colour + (WET_SAND - colour) * 0.7 * wet
    return result.astype(np.float32)
