"""What people have put around the ships: roads, towns, boats too small to be labelled."""

import math

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.drawing import Colour, Frame, Sketch, shaded, varied
from ifkd.data.synthetic.fleet import Fleet
from ifkd.data.synthetic.harbour import Harbour
from ifkd.data.synthetic.ships import Ship
from ifkd.data.synthetic.terrain import APRON_M, Terrain

ROAD: Colour = (128, 126, 122)
HOUSES: tuple[Colour, ...] = (
    (156, 92, 70), (142, 84, 66), (172, 112, 88), (150, 146, 140), (188, 184, 176), (112, 110, 108), (98, 84, 74),
)  # fmt: skip
BOATS: tuple[Colour, ...] = ((224, 226, 224), (216, 218, 214), (74, 98, 132), (150, 66, 52), (196, 178, 130))
BLOCK_M = (78.0, 62.0)
BLOCK_CORNERS = np.array([(0.0, 0.0), (78.0, 0.0), (78.0, 62.0), (0.0, 62.0), (39.0, 31.0)])
DRY = 0.10
"""Terrain height on which one builds."""
AFLOAT = -0.08
"""Terrain height of water that carries a boat."""


def make_roads(terrain: Terrain, harbours: list[Harbour], rng: np.random.Generator) -> list[Sketch]:
    """Return roads that wind inland from harbours as long as there is land."""
    roads = []
    for harbour in harbours:
        for side in rng.uniform(-0.8, 0.8, 2):
            frame = harbour.frame_at(side * harbour.basin.half_length_m, -APRON_M + 30, -math.pi / 2)
            roads += _road(terrain, frame, rng)
    return roads


def _road(terrain: Terrain, start: Frame, rng: np.random.Generator) -> list[Sketch]:
    x, y, angle = start.x, start.y, start.angle
    bend, pieces = 0.0, []
    colour = varied(rng, ROAD)
    for _ in range(40):
        ahead = np.array([0.0, 20.0, 40.0])
        heights = terrain.at(y + ahead * math.sin(angle), x + ahead * math.cos(angle))
        if heights.min() < 0.05:
            break
        sketch = Sketch(Frame(x, y, angle))
        sketch.line((-3.0, 0.0), (44.0, 0.0), 8.0, colour)
        sketch.line((0.0, 0.0), (40.0, 0.0), 0.8, shaded(colour, 1.35))
        for _ in range(rng.integers(0, 3)):
            u, side = rng.uniform(0, 40), rng.choice([-2.0, 2.0])
            sketch.box((u, u + 4.5), (side - 1, side + 1), varied(rng, (150, 150, 150), 50.0), 1.5)
        pieces.append(sketch)
        x, y = x + 40 * math.cos(angle), y + 40 * math.sin(angle)
        bend = 0.8 * bend + rng.normal(0.0, 0.05)
        angle += bend
    return pieces


def make_towns(
    terrain: Terrain, size_m: tuple[float, float], harbours: list[Harbour], rng: np.random.Generator
) -> list[Sketch]:
    """Return blocks of houses along streets, on dry land, behind harbours and elsewhere."""
    centres = [(harbour.frame_at(rng.uniform(-150, 150), -APRON_M - rng.uniform(60, 160)), 7) for harbour in harbours]
    area_km2 = size_m[0] * size_m[1] / 1e6
    for _ in range(round(area_km2 * 0.8)):
        frame = Frame(rng.uniform(0, size_m[1]), rng.uniform(0, size_m[0]), rng.uniform(0, math.pi))
        centres.append((frame, int(rng.integers(2, 6))))
    sketches: list[Sketch] = []
    for town, extent in centres:
        steps = np.arange(-extent, extent + 1)
        i, j = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
        wished = rng.random(i.size) < 1.15 - np.hypot(i, j) / extent
        places = np.stack([i[wished] * BLOCK_M[0], j[wished] * BLOCK_M[1]], axis=1)
        corners = town.to_world((places[:, None] + BLOCK_CORNERS).reshape(-1, 2)).reshape(-1, 5, 2)
        free = corners[_is_free(terrain, corners, harbours), 0]
        sketches += [_block(Frame(float(x), float(y), town.angle), rng) for x, y in free]
    return sketches


def _is_free(terrain: Terrain, corners: Array, harbours: list[Harbour]) -> Array:
    """Return which blocks, given by points [n, 5, 2], lie on dry land and off the harbours' ground."""
    x, y = corners[..., 0], corners[..., 1]
    free = np.asarray((terrain.at(y, x) >= DRY).all(axis=1))
    for harbour in harbours:
        u, v = harbour.basin.frame.to_local(x, y)
        free &= ~((np.abs(u) < harbour.basin.half_length_m + 30) & (v > -APRON_M + 10)).any(axis=1)
    return free


def _block(frame: Frame, rng: np.random.Generator) -> Sketch:
    """Return one block of houses with the streets on two of its sides."""
    sketch = Sketch(frame)
    street = varied(rng, ROAD, 5.0)
    sketch.line((0.0, 0.0), (78.0, 0.0), 6.0, street)
    sketch.line((0.0, 0.0), (0.0, 62.0), 6.0, street)
    if rng.random() < 0.12:  # one large building
        roof = varied(rng, HOUSES[rng.integers(3, 6)])
        sketch.box((14.0, 66.0), (12.0, 52.0), roof, 12.0)
        sketch.box((24.0, 50.0), (20.0, 40.0), shaded(roof, 0.82), 3.0)
        return sketch
    u = 8.0
    while u < 66:
        width = rng.uniform(9, 15)
        for v in (7.0, 36.0):
            if rng.random() < 0.85:
                _house(sketch, (u, v + rng.uniform(0, 4)), (width, rng.uniform(9, 16)), rng)
        u += width + rng.uniform(3, 8)
    return sketch


def _house(sketch: Sketch, corner: tuple[float, float], size: tuple[float, float], rng: np.random.Generator) -> None:
    (u, v), (width, depth) = corner, size
    roof = varied(rng, HOUSES[rng.integers(len(HOUSES))], 10.0)
    sketch.box((u, u + width), (v, v + depth), roof, rng.uniform(4, 8))
    sketch.box((u, u + width), (v, v + depth / 2), shaded(roof, 1.14))


def make_small_boats(
    terrain: Terrain, size_m: tuple[float, float], fleet: Fleet, rng: np.random.Generator, *, abundance: float
) -> tuple[list[Sketch], list[Ship]]:
    """Return drawings of boats of 6 to 20 m, and those of them that leave a wake."""
    sketches, moving = [], []
    area_km2 = size_m[0] * size_m[1] / 1e6
    places = rng.uniform(0.0, 1.0, (rng.poisson(26.0 * abundance * area_km2), 2)) * np.array(size_m)
    for y, x in places[terrain.at(places[:, 0], places[:, 1]) < AFLOAT]:
        length = rng.uniform(6, 20)
        frame = Frame(float(x), float(y), rng.uniform(0, 2 * math.pi))
        colour = varied(rng, BOATS[rng.integers(len(BOATS))])
        boat = Ship("ferry", frame, length, length / rng.uniform(2.8, 3.6), colour, colour, 0)
        if fleet.is_near(boat, 6.0):
            continue
        sketches.append(_boat(boat, rng))
        if rng.random() < 0.3:
            moving.append(Ship("ferry", frame, length, boat.beam_m, colour, colour, 0, speed=rng.uniform(0.4, 1.0)))
    return sketches, moving


def _boat(boat: Ship, rng: np.random.Generator) -> Sketch:
    sketch = Sketch(boat.frame)
    half, beam = boat.length_m / 2, boat.beam_m / 2
    sketch.area([(-half, -beam), (half * 0.3, -beam), (half, 0.0), (half * 0.3, beam), (-half, beam)], boat.hull, 2.0)
    if boat.length_m > 9:
        sketch.box((-half * 0.3, half * 0.3), (-beam * 0.6, beam * 0.6), varied(rng, (196, 200, 202)), 2.0)
    return sketch
