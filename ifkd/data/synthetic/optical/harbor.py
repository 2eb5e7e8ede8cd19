"""Harbors and towns: piers and quays with berths, and rows of buildings."""

from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.geometry import Frame, Point
from ifkd.data.synthetic.optical.drawing import CONTAINERS, Color, Sketch, shaded, varied
from ifkd.data.synthetic.optical.terrain import APRON_M, HALF_QUAY_M, REACH_M

PAVED: tuple[Color, ...] = ((158, 154, 145), (132, 130, 126))
CONCRETE: tuple[Color, ...] = ((172, 167, 156), (150, 148, 142))


Berth = tuple[Frame, float]
"""A straight edge for mooring, and its length: u runs along it from 0, v points to the water."""


@dataclass(frozen=True, slots=True)
class Buildings:
    """Look of similar buildings in rows."""

    size_m: Point
    """Largest length and depth."""
    gap_m: float
    height_m: float
    colors: tuple[Color, ...]

    def places(self, along: Point, across: Point, rng: np.random.Generator) -> Array:
        """Return the middles, (u, v) [n, 2], of buildings in rows along u that fill a rectangle; some stay free."""
        length, depth = self.size_m
        v = np.arange(across[0] + depth / 2, across[1] - depth / 2, depth + self.gap_m)
        u = np.arange(along[0] + length / 2, along[1] - length / 2, length + self.gap_m)
        grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        return grid[rng.random(len(grid)) < 0.8]

    def sketches(self, frame: Frame, places: Array, rng: np.random.Generator) -> list[Sketch]:
        """Return a building at each of the `places`, (u, v) [n, 2], in a frame."""
        (length, depth), sketches = self.size_m, []
        for x, y in frame.to_world(places).tolist():
            sketch, color = Sketch(Frame(x, y, frame.angle)), varied(rng, self.colors)
            half, side = rng.uniform(0.3, 0.5) * length, rng.uniform(0.35, 0.5) * depth
            sketch.box((-half, half), (-side, side), color, self.height_m * rng.uniform(0.7, 1.2))
            sketch.box((-half, half), (0.0, side), shaded(color, 1.12))
            sketches.append(sketch)
        return sketches


# fmt: off
ROOFS: tuple[Color, ...] = (
    (188, 188, 184), (206, 206, 202), (124, 128, 132), (150, 84, 64), (96, 110, 128), (168, 152, 128), (84, 92, 92),
)
HALLS = Buildings((70.0, 32.0), 12.0, 9.0, ROOFS)
STACKS = Buildings((26.0, 9.0), 1.5, 6.0, CONTAINERS)
TANKS = Buildings((34.0, 34.0), 12.0, 13.0, ((214, 212, 204), (206, 204, 198), (150, 140, 122)))
HOUSES = Buildings((16.0, 14.0), 9.0, 6.0, (
    (156, 92, 70), (142, 84, 66), (172, 112, 88), (150, 146, 140), (188, 184, 176), (112, 110, 108), (98, 84, 74),
))
CRANES = Buildings((12.0, 26.0), 60.0, 16.0, ((70, 100, 150), (176, 74, 56), (200, 200, 196)))
# fmt: on


def make_harbor(quay: Frame, rng: np.random.Generator) -> tuple[list[Berth], list[Sketch]]:
    """Return the berths of a harbor, at its quay or at piers, and its drawings."""
    berths: list[Berth] = []
    ground, yard = Sketch(quay), (HALLS, STACKS, TANKS)[rng.integers(3)]
    ground.box((-HALF_QUAY_M, HALF_QUAY_M), (20.0 - APRON_M, 0.5), varied(rng, PAVED))
    places = yard.places((8 - HALF_QUAY_M, HALF_QUAY_M - 8), (24.0 - APRON_M, -32.0), rng)
    sketches = [ground, *yard.sketches(quay, places, rng)]
    if yard is STACKS:
        berths.append((quay.moved(8 - HALF_QUAY_M, 0.0), 2 * HALF_QUAY_M - 16))
        places = CRANES.places((-HALF_QUAY_M, HALF_QUAY_M), (-28.0, -2.0), rng)
        sketches += CRANES.sketches(quay, places, rng)
        return berths, sketches
    half, step = rng.uniform(6.0, 16.0), rng.uniform(100.0, 180.0)
    for u in np.arange(step / 2 - HALF_QUAY_M, HALF_QUAY_M - 40.0, step).tolist():
        foot, reach = quay.moved(u, 0.0), rng.uniform(0.4, 0.9) * REACH_M
        sketch, color = Sketch(foot), varied(rng, CONCRETE, 12.0)
        sketch.box((-half, half), (-6.0, reach), shaded(color, 0.82), 3.0)
        sketch.box((1 - half, half - 1), (-6.0, reach - 1), color)
        if half > 11.0:  # a shed
            sketch.box((-half / 2, half / 2), (24.0, reach - 16), varied(rng, ROOFS), 8.0)
        sketches.append(sketch)
        berths.append((foot.moved(-half, 14.0, np.pi / 2), reach - 16))
        berths.append((foot.moved(half, reach - 2, -np.pi / 2), reach - 16))
    return berths, sketches
