"""Ships: their classes, sizes, hulls and paint."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import ShipClass
from ifkd.data.synthetic.drawing import Colour, Frame, varied

Profile = tuple[tuple[float, float], ...]
"""Half-breadths along a hull: (station from 0 at the stern to 1 at the bow, share of the half beam)."""

_WARSHIP: Profile = (
    (0.0, 0.70), (0.02, 0.78), (0.12, 0.90), (0.30, 0.99), (0.48, 1.0), (0.62, 0.93), (0.74, 0.76),
    (0.84, 0.53), (0.92, 0.29), (0.97, 0.12), (1.0, 0.01),
)  # fmt: skip
_MERCHANT: Profile = (
    (0.0, 0.60), (0.015, 0.76), (0.06, 0.93), (0.14, 1.0), (0.83, 1.0), (0.89, 0.92), (0.94, 0.72),
    (0.975, 0.44), (1.0, 0.06),
)  # fmt: skip
_SLENDER_MERCHANT: Profile = (
    (0.0, 0.66), (0.02, 0.84), (0.08, 0.97), (0.16, 1.0), (0.70, 1.0), (0.80, 0.88), (0.88, 0.64),
    (0.95, 0.32), (1.0, 0.03),
)  # fmt: skip
_FERRY: Profile = (
    (0.0, 0.84), (0.02, 0.93), (0.10, 1.0), (0.70, 1.0), (0.80, 0.93), (0.89, 0.74), (0.95, 0.48),
    (0.985, 0.22), (1.0, 0.04),
)  # fmt: skip
_FLIGHT_DECK_PORT: Profile = (
    (0.0, 0.62), (0.01, 0.70), (0.12, 0.74), (0.24, 0.98), (0.50, 1.0), (0.62, 0.84), (0.72, 0.66),
    (0.93, 0.58), (0.985, 0.46), (1.0, 0.30),
)  # fmt: skip
_FLIGHT_DECK_STARBOARD: Profile = (
    (0.0, 0.62), (0.01, 0.70), (0.22, 0.76), (0.32, 0.96), (0.64, 0.98), (0.72, 0.72), (0.93, 0.58),
    (0.985, 0.46), (1.0, 0.30),
)  # fmt: skip


Paints = tuple[tuple[Colour, Colour], ...]
"""Pairs of hull and deck colour."""


@dataclass(frozen=True, slots=True)
class Design:
    """What the ships of a class have in common."""

    length_m: tuple[float, float]
    slenderness: tuple[float, float]
    """Range of length over beam."""
    port: Profile
    starboard: Profile
    paints: Paints
    """Pairs of hull and deck colour, any of which a ship may wear."""
    freeboard_m: float
    """Height of the deck above the water."""
    look_alike: ShipClass
    """The class it is most easily taken for."""


_GREYS: Paints = (
    ((112, 118, 122), (138, 144, 147)),
    ((104, 112, 119), (126, 133, 139)),
    ((121, 125, 126), (150, 154, 155)),
)
_CONTAINER_SHIP_PAINTS: Paints = (
    ((38, 52, 86), (112, 68, 58)),
    ((40, 44, 48), (96, 100, 98)),
    ((46, 84, 70), (104, 66, 58)),
    ((122, 48, 42), (92, 84, 80)),
)
_OIL_TANKER_PAINTS: Paints = (
    ((44, 42, 46), (136, 70, 58)),
    ((92, 38, 36), (148, 80, 64)),
    ((36, 44, 62), (122, 66, 56)),
    ((40, 42, 44), (74, 108, 88)),
)
_BULK_CARRIER_PAINTS: Paints = (
    ((42, 44, 48), (122, 74, 62)),
    ((32, 48, 74), (112, 78, 66)),
    ((104, 46, 40), (108, 106, 98)),
    ((46, 46, 44), (82, 98, 84)),
)
_FERRY_PAINTS: Paints = (
    ((206, 208, 206), (226, 228, 226)),
    ((40, 62, 112), (218, 222, 224)),
    ((190, 60, 48), (222, 220, 216)),
    ((210, 212, 210), (196, 204, 206)),
)
_AIRCRAFT_CARRIER_PAINTS: Paints = (
    ((92, 96, 99), (84, 88, 91)),
    ((100, 103, 104), (94, 98, 98)),
    ((82, 87, 91), (74, 79, 84)),
)

DESIGNS: dict[ShipClass, Design] = {
    "aircraft_carrier": Design(
        (186.0, 226.0), (5.8, 6.5), _FLIGHT_DECK_PORT, _FLIGHT_DECK_STARBOARD,
        _AIRCRAFT_CARRIER_PAINTS,
        15.0, "destroyer",
    ),
    "destroyer": Design((140.0, 162.0), (7.6, 8.4), _WARSHIP, _WARSHIP, _GREYS, 7.0, "frigate"),
    "frigate": Design((98.0, 124.0), (7.6, 8.6), _WARSHIP, _WARSHIP, _GREYS, 6.0, "destroyer"),
    "container_ship": Design(
        (130.0, 216.0), (6.2, 7.0), _SLENDER_MERCHANT, _SLENDER_MERCHANT,
        _CONTAINER_SHIP_PAINTS,
        9.0, "bulk_carrier",
    ),
    "oil_tanker": Design(
        (120.0, 214.0), (5.6, 6.4), _MERCHANT, _MERCHANT,
        _OIL_TANKER_PAINTS,
        6.0, "bulk_carrier",
    ),
    "bulk_carrier": Design(
        (116.0, 208.0), (5.8, 6.6), _MERCHANT, _MERCHANT,
        _BULK_CARRIER_PAINTS,
        8.0, "oil_tanker",
    ),
    "ferry": Design(
        (62.0, 128.0), (4.4, 5.4), _FERRY, _FERRY,
        _FERRY_PAINTS,
        10.0, "frigate",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Ship:
    """One ship."""

    kind: ShipClass
    frame: Frame
    """Its middle, and the direction of its bow."""
    length_m: float
    beam_m: float
    hull: Colour
    deck: Colour
    seed: int
    """Decides its details."""
    speed: float = 0.0
    """0 at rest to 1 at full speed; decides the wake."""

    @property
    def outline(self) -> Array:
        """The silhouette, float64 [n, 2], world x, y in metres, in order."""
        return self.frame.to_world(hull_points(self))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of the silhouette, world metres."""
        points = self.outline
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)


@dataclass(frozen=True, slots=True)
class Build:
    """A ship that is designed but has no place yet."""

    kind: ShipClass
    length_m: float
    beam_m: float
    hull: Colour
    deck: Colour
    seed: int

    def at(self, frame: Frame, *, speed: float = 0.0) -> Ship:
        """Return the ship at a place."""
        return Ship(self.kind, frame, self.length_m, self.beam_m, self.hull, self.deck, self.seed, speed)


def build_ship(
    kind: ShipClass, rng: np.random.Generator, *, similarity: float, longest_m: float = math.inf
) -> Build | None:
    """Return a ship of a class, or nothing if none of that class is as short as `longest_m`."""
    design = DESIGNS[kind]
    low, high = _mixed_range(design.length_m, DESIGNS[design.look_alike].length_m, similarity)
    if low > longest_m:
        return None
    length = rng.uniform(low, min(high, longest_m))
    beam = length / rng.uniform(*design.slenderness)
    paints = design.paints
    if rng.random() < similarity / 2:
        paints = DESIGNS[design.look_alike].paints
    hull, deck = paints[rng.integers(len(paints))]
    seed = int(rng.integers(2**31))
    return Build(kind, length, beam, varied(rng, hull, 6.0), varied(rng, deck, 10.0), seed)


def hull_points(ship: Ship | Build, *, inset_m: float = 0.0) -> Array:
    """Return the outline of the hull, or of a line `inset_m` inside it, as local (u, v) [n, 2].

    The local frame has its origin amidships, u towards the bow and v to starboard.
    """
    design = DESIGNS[ship.kind]
    half_length, half_beam = ship.length_m / 2, ship.beam_m / 2
    scale = (half_length - inset_m) / half_length
    sides = []
    for profile, sign in ((design.starboard, 1.0), (design.port, -1.0)):
        stations, shares = np.array(profile).T
        breadth = np.maximum(shares * half_beam - inset_m, 0.0)
        sides.append(np.stack([(stations * 2 - 1) * half_length * scale, sign * breadth], axis=1))
    return np.concatenate([sides[0], sides[1][::-1]])


def half_breadth(ship: Ship, station: float) -> float:
    """Return the smaller of the two half-breadths at a station (0 stern, 1 bow), metres."""
    design = DESIGNS[ship.kind]
    shares = [
        np.interp(station, [point[0] for point in profile], [point[1] for point in profile])
        for profile in (design.port, design.starboard)
    ]
    return float(min(shares)) * ship.beam_m / 2


def _mixed_range(own: tuple[float, float], other: tuple[float, float], similarity: float) -> tuple[float, float]:
    """Stretch a range towards that of a look-alike, at most half of the way."""
    share = similarity / 2
    low = own[0] + share * (min(own[0], max(other[0], own[0] * 0.6)) - own[0])
    high = own[1] + share * (max(own[1], min(other[1], own[1] * 1.4)) - own[1])
    return low, high
