"""Airfields: a runway, a taxiway, an apron with parked aircraft and terminals."""

import math
from dataclasses import dataclass, field

import numpy as np
import shapely

from ifkd.data.synthetic.config import AircraftDatasetConfig
from ifkd.data.synthetic.geometry import Bounds, Frame, bounds_of
from ifkd.data.synthetic.sar.aircraft import ParkedAircraft, park

EDGE_M = 8.0  # Least distance of aircraft from the edge of the world
PER_AIRFIELD = 24
APART_M = 1200.0  # Distance of aprons, so that no aircraft of one airfield comes near another's
PAVEMENT, RUNWAY, ROOF, SHADE, LAYOVER, WALL = 0.16, 0.05, 0.7, 0.06, 3.0, 30.0  # Mean intensities; of grass: 1
HALF_LENGTH, HALF_DEPTH, TAXIWAY, RUNWAY_AT = 285.0, 140.0, -190.0, -365.0
"""Of the apron, and v of the middle of taxiway and runway, meters."""


@dataclass(frozen=True, slots=True)
class GroundStrip:
    """A rectangle on the ground, or what the sensor sees of a building."""

    frame: Frame
    half_length: float
    half_width: float
    intensity: float
    """Mean, where that of grass is 1."""

    @property
    def bounds(self) -> Bounds:
        """Bounds, world meters."""
        u, v = self.half_length, self.half_width
        return bounds_of(self.frame.to_world([(u, v), (u, -v), (-u, -v), (-u, v)]))


@dataclass(slots=True, eq=False)
class Airfields:
    """A world of airfields in grassland. All coordinates are meters from its upper left corner."""

    seed: int
    ground: list[GroundStrip] = field(default_factory=list)
    """In the order in which they cover each other."""
    aircraft: list[ParkedAircraft] = field(default_factory=list)


def make_airfields(
    config: AircraftDatasetConfig, *, place: tuple[int, ...], size_px: tuple[int, int], count: int
) -> Airfields:
    """Return the world of a place with up to `count` aircraft; `painter_of` explains the other arguments."""
    rng = np.random.default_rng([config.seed, *place])
    size_m = (size_px[0] * config.gsd_m, size_px[1] * config.gsd_m)
    world = Airfields(int(rng.integers(2**24)) * 64)
    wanted = max(1, math.ceil(count / PER_AIRFIELD))
    room = np.minimum(300.0, 0.4 * np.array(size_m))
    aprons: list[Frame] = []
    for y, x in rng.uniform(room, size_m - room, (40 * wanted, 2)).tolist():
        if len(aprons) < wanted and all(math.hypot(x - other.x, y - other.y) > APART_M for other in aprons):
            aprons.append(Frame(x, y, rng.uniform(0.0, 2 * math.pi)))
    for number, apron in enumerate(aprons):
        _build(world, apron, math.tan(math.radians(config.radar.incidence_deg)), rng)
        aim = math.ceil((count - len(world.aircraft)) / (len(aprons) - number))
        world.aircraft += _aircraft(config, apron, size_m, aim, rng)
    return world


def _build(world: Airfields, apron: Frame, slope: float, rng: np.random.Generator) -> None:
    """Build pavement and terminals around an apron."""
    for u, v, half_length, half_width, intensity in (
        (0.0, RUNWAY_AT, rng.uniform(1200, 1700), 24.0, RUNWAY),
        (0.0, TAXIWAY, 1100.0, 11.0, PAVEMENT),
        *((u, (RUNWAY_AT - HALF_DEPTH) / 2, 11.0, 112.0, PAVEMENT) for u in rng.uniform(-280, 280, 3).tolist()),
        (0.0, 0.0, HALF_LENGTH, HALF_DEPTH, PAVEMENT),
    ):
        strip = GroundStrip(apron.moved(u, v), half_length, half_width, intensity * rng.uniform(0.8, 1.25))
        world.ground.append(strip)
    start = -HALF_LENGTH
    while start < HALF_LENGTH - 60.0:
        length, deep = rng.uniform(60.0, 260.0), rng.uniform(18.0, 32.0)
        center, height = apron.moved(start + length / 2, HALF_DEPTH + 6.0 + deep), rng.uniform(9.0, 22.0)
        # The shadow behind it, the wall laid over in front of it, its bright foot, and the roof.
        shifts = [(shift, SHADE) for shift in np.arange(height * slope, 0.0, -6.0)]
        shifts += [(-shift, LAYOVER) for shift in np.arange(0.0, height / slope, 6.0)]
        shifts += [(0.0, WALL * abs(math.cos(2 * center.angle))), (3.0, ROOF)]
        for shift, intensity in shifts:
            frame = Frame(center.x + shift, center.y, center.angle)
            world.ground.append(GroundStrip(frame, length / 2, deep, intensity))
        start += length + rng.uniform(20.0, 70.0)


def _aircraft(
    config: AircraftDatasetConfig, apron: Frame, size_m: tuple[float, float], count: int, rng: np.random.Generator
) -> list[ParkedAircraft]:
    """Return up to `count` aircraft on runway and taxiway and in three rows on the apron, apart from each other."""
    aircraft: list[ParkedAircraft] = []
    moving, slants = round(count * config.aircraft.taxiing_fraction), rng.choice([0.0, 0.6, math.pi], 3)
    stands = [(u, 100.0 - 80.0 * row, math.pi / 2 + slants[row]) for row in range(3) for u in np.arange(-250, 251, 55)]
    places = [(u, rng.choice([TAXIWAY, RUNWAY_AT]), math.pi * rng.integers(2)) for u in rng.uniform(-380, 380, moving)]
    places += stands
    types = np.resize(rng.permutation(config.aircraft.classes), len(places)).tolist()
    for (u, v, turn), category in zip(places, types, strict=True):
        place = apron.moved(u + rng.normal(0.0, 3.0), v + rng.normal(0.0, 1.5), turn + rng.normal(0.0, 0.04))
        one = park(category, place, rng, config)
        hull = shapely.Polygon(one.outline)
        inside = shapely.box(EDGE_M, EDGE_M, size_m[1] - EDGE_M, size_m[0] - EDGE_M).contains(hull)
        others = [shapely.Polygon(other.outline) for other in aircraft]
        if inside and len(others) < count and not shapely.dwithin(hull, others, 4.0).any():
            aircraft.append(one)
    return aircraft
