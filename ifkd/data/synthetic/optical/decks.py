"""Superstructures, cargo and deck equipment of ships: a table of rectangles for each class."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ifkd.data.synthetic.geometry import Point
from ifkd.data.synthetic.optical.drawing import CONTAINERS, Color, Sketch, shaded, varied
from ifkd.data.synthetic.optical.ships import DESIGNS, Hull, Ship, hull_points

FOAM: Color = (208, 218, 218)
ROOM_M = 0.8  # Least distance of parts from the side of the hull
# fmt: off
PALETTE: dict[str, tuple[Color, ...]] = {
    "gray": ((158, 163, 165), (150, 156, 159)), "soot": ((46, 48, 50),), "orange": ((206, 98, 40),),
    "white": ((226, 228, 224), (226, 228, 224), (214, 206, 184)), "pipe": ((186, 178, 160),),
    "crane": ((220, 190, 90), (216, 216, 208), (200, 150, 70)),
    "lid": ((172, 166, 150), (150, 112, 92), (136, 146, 138), (188, 182, 168)),
    "funnel": ((30, 60, 120), (150, 44, 40), (36, 38, 40), (206, 160, 60), (60, 110, 80)),
    "sun deck": ((92, 128, 150), (104, 140, 116), (176, 178, 174), (160, 96, 76)),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle on a deck, or a grid of them; stations run from 0 (stern) to 1 (bow), breadths from -1 to 1."""

    paint: str
    """A color of the palette, `deck`, or `container`."""
    tone: float
    along: Point
    across: Point
    rise_m: float = 0.0
    cell_m: float = math.inf
    """Length of the cells of a grid, about, with the gap between them."""
    gap_m: float = 0.0
    chance: float = 1.0
    breadth_m: float = math.inf
    slant: float = 0.0
    """Shift in breadth from its rear to its front end."""
    mirrored: bool = False


def _accommodation(start: float, end: float) -> tuple[Part, ...]:
    """Return block, bridge, funnel and lifeboats of a merchant ship."""
    return (
        Part("white", 1.0, (start, end), (-0.86, 0.86), 15.0), Part("white", 1.06, (end - 0.02, end), (-1.0, 1.0), 3.0),
        Part("funnel", 1.0, (start - 0.045, start - 0.008), (-0.34, 0.34), 16.0),
        Part("orange", 1.0, (start + 0.01, start + 0.045), (0.72, 0.88), mirrored=True),
    )


PARTS: dict[Hull, tuple[Part, ...]] = {
    "aircraft_carrier": (  # Lines of the angled deck and of the bow, elevators, aircraft, island.
        Part("white", 0.9, (0.01, 0.68), (0.20, 0.25), slant=-0.86),
        Part("white", 0.9, (0.02, 0.60), (0.50, 0.55), slant=-0.80),
        Part("white", 0.9, (0.03, 0.44), (-0.44, -0.39), slant=-0.50),
        Part("white", 0.9, (0.62, 0.985), (-0.08, -0.03)), Part("white", 0.9, (0.70, 0.97), (0.30, 0.35)),
        Part("deck", 0.72, (0.25, 0.80), (0.44, 0.62), 0.0, 30.0, 18.0, 0.6),
        Part("gray", 1.0, (0.06, 0.34), (0.30, 0.56), 2.0, 12.0, 6.0, 0.5),
        Part("gray", 1.0, (0.73, 0.93), (0.12, 0.36), 2.0, 12.0, 6.0, 0.4, mirrored=True),
        Part("gray", 0.9, (0.43, 0.58), (0.62, 0.92), 22.0), Part("gray", 1.08, (0.46, 0.52), (0.66, 0.86), 8.0),
    ),
    "destroyer": (  # Helipad, hangar, two funnels, bridge and mast, launcher cells and gun.
        Part("deck", 0.68, (0.02, 0.185), (-0.86, 0.86)), Part("white", 0.9, (0.08, 0.13), (-0.40, 0.40)),
        Part("gray", 1.0, (0.19, 0.31), (-0.80, 0.80), 8.0), Part("gray", 0.94, (0.33, 0.70), (-0.74, 0.74), 6.0),
        Part("soot", 1.0, (0.36, 0.42), (-0.36, 0.36), 7.0), Part("soot", 1.0, (0.49, 0.55), (-0.36, 0.36), 7.0),
        Part("gray", 1.12, (0.59, 0.70), (-0.84, 0.84), 12.0), Part("gray", 0.8, (0.615, 0.655), (-0.36, 0.36), 12.0),
        Part("deck", 0.55, (0.725, 0.79), (-0.42, 0.42)), Part("gray", 1.0, (0.83, 0.86), (-0.26, 0.26), 3.0),
    ),
    "frigate": (  # A larger helipad, hangar, one funnel, bridge and mast, gun.
        Part("deck", 0.78, (0.02, 0.235), (-0.86, 0.86)), Part("white", 0.9, (0.10, 0.16), (-0.40, 0.40)),
        Part("gray", 1.08, (0.24, 0.37), (-0.84, 0.84), 8.0), Part("gray", 1.0, (0.37, 0.46), (-0.50, 0.50), 4.0),
        Part("soot", 1.0, (0.465, 0.535), (-0.50, 0.50), 8.0), Part("gray", 1.12, (0.56, 0.705), (-0.79, 0.79), 10.0),
        Part("gray", 0.74, (0.575, 0.615), (-0.32, 0.32), 14.0), Part("gray", 1.0, (0.78, 0.82), (-0.26, 0.26), 3.0),
    ),
    "container_ship": (
        Part("deck", 0.62, (0.18, 0.925), (-0.96, 0.96)), Part("white", 1.0, (0.95, 0.96), (-0.12, 0.12)),
        Part("container", 1.0, (0.18, 0.925), (-0.95, 0.95), 7.0, 14.2, 1.5, 0.88, 5.0), *_accommodation(0.09, 0.16),
    ),
    "oil_tanker": (  # Tank lids, pipes along the middle, the manifold across them.
        Part("pipe", 0.9, (0.28, 0.92), (0.44, 0.54), 0.8, 17.0, 14.0, mirrored=True),
        Part("pipe", 1.0, (0.24, 0.95), (-0.08, 0.08)), Part("pipe", 0.86, (0.25, 0.88), (0.14, 0.19), mirrored=True),
        Part("pipe", 1.0, (0.54, 0.60), (-0.78, 0.78), 0.0, 2.6, 1.3), *_accommodation(0.10, 0.19),
    ),
    "bulk_carrier": (  # Hatches with a seam, some of them open, and cranes between them.
        Part("lid", 0.7, (0.235, 0.945), (-0.60, 0.60), 2.4, 21.0, 5.0),
        Part("lid", 1.0, (0.235, 0.945), (-0.54, 0.54), 0.0, 21.0, 7.0),
        Part("soot", 1.3, (0.235, 0.945), (-0.54, 0.54), 0.0, 21.0, 7.0, 0.05),
        Part("lid", 0.72, (0.235, 0.945), (-0.03, 0.03)), *_accommodation(0.085, 0.17),
        Part("crane", 1.0, (0.32, 0.87), (-0.14, 0.14), 9.0, 42.0, 37.0, 0.6),
    ),
    "ferry": (  # The open car deck, superstructure, sun deck, bridge, funnel, boats.
        Part("gray", 0.7, (0.02, 0.13), (-0.82, 0.82)), Part("white", 1.0, (0.12, 0.80), (-0.90, 0.90), 9.0),
        Part("sun deck", 1.0, (0.16, 0.60), (-0.62, 0.62)), Part("white", 1.05, (0.63, 0.77), (-0.78, 0.78), 4.0),
        Part("white", 0.86, (0.72, 0.765), (-0.96, 0.96), 2.0), Part("funnel", 1.0, (0.28, 0.37), (-0.3, 0.3), 8.0),
        Part("orange", 1.0, (0.22, 0.68), (0.72, 0.90), 0.0, 12.0, 4.5, mirrored=True),
    ),
    "boat": (Part("white", 0.9, (0.35, 0.65), (-0.6, 0.6), 2.0),),
}
# fmt: on
TALLEST_M = max(
    *(design.freeboard_m for design in DESIGNS.values()), *(part.rise_m for parts in PARTS.values() for part in parts)
)
"""Height above which nothing on a ship rises over what is below it, so that no shadow is longer."""


def ship_sketch(ship: Ship) -> Sketch:
    """Return the drawing of a ship; every part is inside its silhouette."""
    rng, sketch = np.random.default_rng(ship.seed), Sketch(ship.frame)
    size = (ship.category, ship.length_m, ship.beam_m)
    sketch.area(hull_points(*size), ship.hull, DESIGNS[ship.category].freeboard_m)
    sketch.area(hull_points(*size, inset_m=max(0.9, ship.beam_m * 0.045)), ship.deck)
    paints = {name: [varied(rng, colors, 7.0)] for name, colors in PALETTE.items()} | {"deck": [ship.deck]}
    paints["container"] = [CONTAINERS[index] for index in rng.permutation(len(CONTAINERS))[:5]]
    for part in PARTS[ship.category]:
        for side in (1, -1)[: 1 + part.mirrored]:
            _draw(part, side, ship, sketch, paints[part.paint], rng)
    return sketch


def _draw(part: Part, side: int, ship: Ship, sketch: Sketch, colors: list[Color], rng: np.random.Generator) -> None:
    """Draw the cells of a part, narrowed where the hull is."""
    half = side * ship.beam_m / 2
    for rear, front in pairwise(_cells([(station - 0.5) * ship.length_m for station in part.along], part.cell_m)):
        u0, u1 = rear + part.gap_m / 2, front - part.gap_m / 2
        room = max(0.0, min(ship.half_breadth(u0), ship.half_breadth(u1)) - ROOM_M)
        for left, right in pairwise(_cells([breadth * half for breadth in part.across], part.breadth_m)):
            v = np.clip([left, right, right + part.slant * half, left + part.slant * half], -room, room)
            if rng.random() < part.chance and v[0] != v[1]:
                color, height = shaded(varied(rng, colors, 4.0), part.tone), part.rise_m * rng.uniform(0.8, 1.0)
                sketch.area(np.stack([[u0, u0, u1, u1], v], axis=1), color, height)


def _cells(ends: list[float], size: float) -> list[float]:
    """Return the borders of cells of about a size between two ends."""
    return np.linspace(ends[0], ends[1], max(1, round(abs(ends[1] - ends[0]) / size)) + 1).tolist()


def wake_sketch(ship: Ship) -> Sketch:
    """Return the drawing of a wake: a wedge of bright water with churned water in its middle, which fade astern."""
    sketch, bow = Sketch(ship.frame), ship.length_m / 2
    length = ship.length_m * (1.7 + 2.6 * ship.speed)
    for near, far in pairwise(np.linspace(0.0, length, 28).tolist()):
        strength = (0.3 + 0.5 * ship.speed) * (1.0 - far / length) ** 1.3
        edges = [0.35 * ship.beam_m + 0.14 * distance for distance in (near, far)]
        for fraction, opacity in ((1.0, 0.2), (0.94, 0.36), (0.86, 0.1)):
            front, rear = (fraction * edge for edge in edges)
            points = [(bow - near, -front), (bow - near, front), (bow - far, rear), (bow - far, -rear)]
            sketch.area(points, FOAM, opacity=opacity * strength)
        if near > 0.9 * ship.length_m:
            half = 0.45 * ship.beam_m
            sketch.box((bow - near, bow - far), (-half, half), FOAM, opacity=0.8 * strength)
    return sketch
