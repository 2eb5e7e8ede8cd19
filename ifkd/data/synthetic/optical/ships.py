"""Ships: their classes, sizes, hulls and paint."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import ShipClass
from ifkd.data.synthetic.geometry import Frame, Point
from ifkd.data.synthetic.labels import PlacedObject
from ifkd.data.synthetic.optical.drawing import Color, varied

Hull = ShipClass | Literal["boat"]  # A class, or a boat that is too small to be labeled
Profile = tuple[Point, ...]
"""Half-breadths along a hull: (station from 0 at the stern to 1 at the bow, fraction of the half beam)."""


@dataclass(frozen=True, slots=True)
class ShipDesign:
    """Properties that the ships of a class share."""

    length_m: Point
    slenderness: Point
    starboard: Profile
    port: Profile
    paints: tuple[tuple[Color, Color], ...]
    """Pairs of hull and deck color."""
    freeboard_m: float
    look_alike: Hull


# fmt: off
_WARSHIP = ((0.0, 0.7), (0.12, 0.9), (0.3, 1.0), (0.48, 1.0), (0.62, 0.93), (0.74, 0.76), (0.92, 0.29), (1.0, 0.01))
_MERCHANT = ((0.0, 0.6), (0.02, 0.8), (0.14, 1.0), (0.83, 1.0), (0.89, 0.92), (0.94, 0.72), (0.975, 0.44), (1.0, 0.06))
_SLENDER = ((0.0, 0.66), (0.02, 0.84), (0.16, 1.0), (0.70, 1.0), (0.80, 0.88), (0.88, 0.64), (0.95, 0.32), (1.0, 0.03))
_FERRY = ((0.0, 0.84), (0.02, 0.93), (0.10, 1.0), (0.70, 1.0), (0.80, 0.93), (0.89, 0.74), (0.95, 0.48), (1.0, 0.04))
_DECK_PORT = ((0.0, 0.62), (0.12, 0.74), (0.24, 0.98), (0.50, 1.0), (0.72, 0.66), (0.93, 0.58), (1.0, 0.30))
_DECK_STARBOARD = ((0.0, 0.62), (0.22, 0.76), (0.32, 0.96), (0.64, 0.98), (0.72, 0.72), (0.93, 0.58), (1.0, 0.30))
_GRAYS = (((112, 118, 122), (138, 144, 147)), ((104, 112, 119), (126, 133, 139)), ((121, 125, 126), (150, 154, 155)))
DESIGNS: dict[Hull, ShipDesign] = {
    "aircraft_carrier": ShipDesign((186.0, 226.0), (5.8, 6.5), _DECK_STARBOARD, _DECK_PORT, (
        ((92, 96, 99), (84, 88, 91)), ((100, 103, 104), (94, 98, 98)), ((82, 87, 91), (74, 79, 84)),
    ), 15.0, "destroyer"),
    "destroyer": ShipDesign((140.0, 162.0), (7.6, 8.4), _WARSHIP, _WARSHIP, _GRAYS, 7.0, "frigate"),
    "frigate": ShipDesign((98.0, 124.0), (7.6, 8.6), _WARSHIP, _WARSHIP, _GRAYS, 6.0, "destroyer"),
    "container_ship": ShipDesign((130.0, 216.0), (6.2, 7.0), _SLENDER, _SLENDER, (
        ((38, 52, 86), (112, 68, 58)), ((40, 44, 48), (96, 100, 98)), ((122, 48, 42), (92, 84, 80)),
    ), 9.0, "bulk_carrier"),
    "oil_tanker": ShipDesign((120.0, 214.0), (5.6, 6.4), _MERCHANT, _MERCHANT, (
        ((44, 42, 46), (136, 70, 58)), ((92, 38, 36), (148, 80, 64)), ((40, 42, 44), (74, 108, 88)),
    ), 6.0, "bulk_carrier"),
    "bulk_carrier": ShipDesign((116.0, 208.0), (5.8, 6.6), _MERCHANT, _MERCHANT, (
        ((42, 44, 48), (122, 74, 62)), ((104, 46, 40), (108, 106, 98)), ((46, 46, 44), (82, 98, 84)),
    ), 8.0, "oil_tanker"),
    "ferry": ShipDesign((62.0, 128.0), (4.4, 5.4), _FERRY, _FERRY, (
        ((206, 208, 206), (226, 228, 226)), ((40, 62, 112), (218, 222, 224)), ((190, 60, 48), (222, 220, 216)),
    ), 10.0, "frigate"),
    "boat": ShipDesign((6.0, 20.0), (2.8, 3.6), _FERRY, _FERRY, (
        ((224, 226, 224), (216, 218, 214)), ((224, 226, 224), (74, 98, 132)), ((150, 66, 52), (216, 218, 214)),
    ), 2.0, "boat"),
}
# fmt: on


@dataclass(frozen=True, slots=True, eq=False)
class Ship(PlacedObject):
    """One ship."""

    category: Hull
    length_m: float
    beam_m: float
    hull: Color
    deck: Color
    seed: int
    speed: float = 0.0
    """0 at rest to 1 at full speed; determines the wake."""

    def at(self, frame: Frame, *, speed: float = 0.0) -> "Ship":
        """Return the ship at another position."""
        outline = frame.to_world(hull_points(self.category, self.length_m, self.beam_m))
        return replace(self, frame=frame, outline=outline, speed=speed)

    def half_breadth(self, u: float) -> float:
        """Return the smaller of the two half-breadths at `u` meters before the middle."""
        design, station = DESIGNS[self.category], u / self.length_m + 0.5
        sides = (np.array(side).T for side in (design.starboard, design.port))
        return min(float(np.interp(station, *side)) for side in sides) * self.beam_m / 2


def build_ship(
    category: Hull, rng: np.random.Generator, *, similarity: float, longest_m: float = math.inf
) -> Ship | None:
    """Return a ship of a class at the origin, or None if no ship of that class is as short as `longest_m`."""
    design = DESIGNS[category]
    other = DESIGNS[design.look_alike]
    # Sizes extend toward those of the look-alike, at most half of the way.
    low, high = design.length_m
    low += similarity / 2 * (min(low, max(other.length_m[0], low * 0.6)) - low)
    high += similarity / 2 * (max(high, min(other.length_m[1], high * 1.4)) - high)
    if low > longest_m:
        return None
    length = rng.uniform(low, min(high, longest_m))
    paints = other.paints if rng.random() < similarity / 2 else design.paints
    hull, deck = paints[rng.integers(len(paints))]
    beam, colors = length / rng.uniform(*design.slenderness), (varied(rng, [hull], 6.0), varied(rng, [deck], 10.0))
    outline = hull_points(category, length, beam)
    return Ship(category, Frame(0.0, 0.0, 0.0), outline, length, beam, *colors, int(rng.integers(2**31)))


def hull_points(category: Hull, length_m: float, beam_m: float, *, inset_m: float = 0.0) -> Array:
    """Return the outline of a hull, or of a line inside it, as (u, v) [n, 2] from amidships to bow and starboard."""
    station, half_breadth = _sides(category)
    u, v = (station - 0.5) * (length_m - 2 * inset_m), half_breadth * beam_m / 2
    return np.stack([u, np.sign(v) * np.maximum(np.abs(v) - inset_m, 0.0)], axis=1)


@cache
def _sides(category: Hull) -> tuple[Array, Array]:
    """Return the stations of a hull's outline, and the half-breadths there, starboard positive. [n] each."""
    design = DESIGNS[category]
    station, half_breadth = np.concatenate([design.starboard, np.array(design.port)[::-1] * np.array([1, -1])]).T
    return station, half_breadth
