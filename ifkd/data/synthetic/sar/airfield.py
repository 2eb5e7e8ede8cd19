"""Airfields: runways, taxiways, aprons with aircraft on their stands, terminals, and what else echoes there."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.drawing import Frame
from ifkd.data.synthetic.sar.aircraft import TYPES, ParkedAircraft, park
from ifkd.data.synthetic.sar.config import AircraftClass, SarAircraft

EDGE_M = 8.0
"""Aircraft keep this far inside the world."""
PER_AIRFIELD = 24
APART_M = 1200.0
"""Distance of aprons, so that no aircraft of one airfield comes near another's."""
PAVEMENT, RUNWAY, ROOF = 0.16, 0.05, 0.7
"""Mean intensities of the ground against grass, which has 1."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A rectangle on the ground, or a building on it."""

    frame: Frame
    """Of its middle."""
    half_length: float
    """Along u, metres."""
    half_width: float
    """Along v, metres."""
    intensity: float
    """Mean intensity of its surface against grass."""
    height: float = 0.0
    """Of a building, metres."""

    def bounds(self, reach_m: float) -> tuple[float, float, float, float]:
        """Return x1, y1, x2, y2 in world metres with `reach_m` more to the left and right."""
        corners = self.frame.to_world(
            np.array([(u * self.half_length, v * self.half_width) for u in (-1, 1) for v in (-1, 1)])
        )
        (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
        return float(x1) - reach_m, float(y1), float(x2) + reach_m, float(y2)


@dataclass(frozen=True, slots=True, eq=False)
class Airfields:
    """A world of airfields in grassland. All coordinates are metres from its upper left corner."""

    seed: int
    size_m: tuple[float, float]
    """Height and width."""
    ground: tuple[Strip, ...]
    """Laid on each other in this order."""
    buildings: tuple[Strip, ...]
    aircraft: tuple[ParkedAircraft, ...]
    vehicles: tuple[tuple[Array, Array], ...]
    """Places [n, 2] and echoes complex64 [n] of things that are not labelled, group by group."""


def make_airfields(config: SarAircraft, *, place: tuple[int, ...], size_px: tuple[int, int], count: int) -> Airfields:
    """Return the world of a place.

    Args:
        config: The data set's configuration.
        place: Numbers that name the place; with the configuration they decide everything in it.
        size_px: Height and width.
        count: How many aircraft to place; fewer where they find no room.
    """
    rng = np.random.default_rng([config.seed, *place])
    size_m = (size_px[0] * config.gsd_m, size_px[1] * config.gsd_m)
    builder = _Builder(config, size_m, rng)
    places = _apart(rng, size_m, max(1, math.ceil(count / PER_AIRFIELD)))
    for number, (x, y) in enumerate(places):
        builder.build(x, y, math.ceil((count - len(builder.aircraft)) / (len(places) - number)))
    return Airfields(
        seed=int(rng.integers(2**24)) * 64,
        size_m=size_m,
        ground=tuple(builder.ground),
        buildings=tuple(builder.buildings),
        aircraft=tuple(builder.aircraft),
        vehicles=tuple(builder.vehicles),
    )


def _apart(rng: np.random.Generator, size_m: tuple[float, float], number: int) -> list[tuple[float, float]]:
    """Return up to `number` places for aprons, well apart."""
    height, width = size_m
    room_y, room_x = min(300.0, 0.4 * height), min(300.0, 0.4 * width)
    found: list[tuple[float, float]] = []
    for _ in range(40 * number):
        if len(found) == number:
            break
        x, y = rng.uniform(room_x, width - room_x), rng.uniform(room_y, height - room_y)
        if all(math.hypot(x - other[0], y - other[1]) > APART_M for other in found):
            found.append((float(x), float(y)))
    return found


class _Builder:
    """Collects what stands on the airfields of a world."""

    def __init__(self, config: SarAircraft, size_m: tuple[float, float], rng: np.random.Generator) -> None:
        self.ground: list[Strip] = []
        self.buildings: list[Strip] = []
        self.aircraft: list[ParkedAircraft] = []
        self.vehicles: list[tuple[Array, Array]] = []
        self._config, self._size_m, self._rng = config, size_m, rng
        self._counts: Counter[AircraftClass] = Counter()
        self._first = 0
        """Number of the first aircraft of the airfield that is being built."""

    def build(self, x: float, y: float, count: int) -> None:
        """Build an airfield whose apron lies at a place, with up to `count` aircraft."""
        rng = self._rng
        self._first = len(self.aircraft)
        apron = Frame(x, y, rng.uniform(0.0, 2 * math.pi))
        half_length, half_depth = rng.uniform(240.0, 330.0), rng.uniform(130.0, 150.0)
        taxiway, runway = -half_depth - rng.uniform(35.0, 60.0), -half_depth - rng.uniform(190.0, 260.0)
        self._strip(apron, (0.0, runway), (rng.uniform(1200, 1700), 24.0), RUNWAY)
        self._strip(apron, (0.0, taxiway), (1100.0, 11.0), PAVEMENT)
        for along in rng.uniform(-half_length, half_length, 3):
            self._strip(apron, (float(along), (runway - half_depth) / 2), (11.0, (-half_depth - runway) / 2), PAVEMENT)
        self._strip(apron, (0.0, 0.0), (half_length, half_depth), PAVEMENT)
        self._buildings(apron, half_length, half_depth)
        moving = round(count * self._config.aircraft.taxiing_share)
        self._taxi(apron, moving, (taxiway, runway))
        self._stands(apron, count - moving, half_length, half_depth)
        self._things(apron, half_length, half_depth)

    def _strip(self, apron: Frame, middle: tuple[float, float], half: tuple[float, float], intensity: float) -> None:
        ((x, y),) = apron.to_world(np.array([middle])).tolist()
        self.ground.append(Strip(Frame(x, y, apron.angle), *half, intensity * float(self._rng.uniform(0.8, 1.25))))

    def _buildings(self, apron: Frame, half_length: float, half_depth: float) -> None:
        rng = self._rng
        start = -half_length
        while start < half_length - 60.0:
            length = float(rng.uniform(60.0, 260.0))
            deep, height = float(rng.uniform(18.0, 32.0)), float(rng.uniform(9.0, 22.0))
            middle = np.array([[start + length / 2, half_depth + 6.0 + deep]])
            ((x, y),) = apron.to_world(middle).tolist()
            self.buildings.append(Strip(Frame(x, y, apron.angle), length / 2 - 5.0, deep, ROOF, height))
            start += length + float(rng.uniform(10.0, 60.0))

    def _taxi(self, apron: Frame, count: int, lanes: tuple[float, float]) -> None:
        rng = self._rng
        for _ in range(6 * count):
            if count <= 0:
                return
            middle = np.array([[rng.uniform(-420.0, 420.0), rng.choice(lanes)]])
            turn = math.pi if rng.random() < 0.5 else 0.0
            count -= self._settle(apron, middle, apron.angle + turn + rng.normal(0.0, 0.03))

    def _stands(self, apron: Frame, count: int, half_length: float, half_depth: float) -> None:
        """Park aircraft nose in before the buildings, and in rows on the apron."""
        rng = self._rng
        slants = rng.choice([0.0, 0.6, math.pi, 2.5], 2)
        for depth, slant in (
            (half_depth - 40.0, 0.0),
            (half_depth - 120.0, slants[0]),
            (half_depth - 200.0, slants[1]),
        ):
            along = -half_length + 25.0
            while along < half_length - 25.0 and count > 0:
                kind = self._next_kind()
                room = TYPES[kind].span + rng.uniform(5.0, 12.0)
                if rng.random() < 0.85:
                    middle = np.array([[along + room / 2, depth + rng.normal(0.0, 1.5)]])
                    heading = apron.angle + math.pi / 2 + slant + rng.normal(0.0, 0.04)
                    count -= self._settle(apron, middle, heading, kind=kind)
                along += room

    def _settle(self, apron: Frame, middle: Array, heading: float, *, kind: AircraftClass | None = None) -> bool:
        """Place an aircraft if it lies inside the world and touches no other; return whether it does."""
        kind = kind or self._next_kind()
        aircraft = self._config.aircraft
        ((x, y),) = apron.to_world(middle).tolist()
        one = park(
            kind,
            Frame(x, y, heading),
            self._rng,
            incidence_deg=self._config.radar.incidence_deg,
            fluctuation_db=aircraft.fluctuation_db,
            missing_share=aircraft.missing_share,
        )
        x1, y1, x2, y2 = one.bounds
        height, width = self._size_m
        if x1 < EDGE_M or y1 < EDGE_M or x2 > width - EDGE_M or y2 > height - EDGE_M:
            return False
        reach = _reach(kind)
        if any(
            math.hypot(x - other.frame.x, y - other.frame.y) < 0.92 * (reach + _reach(other.kind))
            for other in self.aircraft[self._first :]
        ):
            return False
        self.aircraft.append(one)
        self._counts[kind] += 1
        return True

    def _next_kind(self) -> AircraftClass:
        """Return a type, rarer ones so far first."""
        classes = self._config.aircraft.classes
        wishes = np.array([1.0 / (1.0 + self._counts[kind]) ** 2 for kind in classes])
        return classes[int(self._rng.choice(len(classes), p=wishes / wishes.sum()))]

    def _things(self, apron: Frame, half_length: float, half_depth: float) -> None:
        """Scatter vehicles, stairs and lamps over the apron: bright points that are no aircraft."""
        rng = self._rng
        groups = int(rng.integers(12, 30))
        for _ in range(groups):
            number = int(rng.integers(1, 7))
            middle = np.array([rng.uniform(-half_length, half_length), rng.uniform(-half_depth, half_depth + 6.0)])
            local = middle + rng.normal(0.0, 3.0, (number, 2))
            strength = rng.uniform(2.0, 9.0, number) * np.exp(1j * rng.uniform(0.0, 2 * math.pi, number))
            self.vehicles.append((apron.to_world(local), strength.astype(np.complex64)))


def _reach(kind: AircraftClass) -> float:
    return max(TYPES[kind].length, TYPES[kind].span) / 2
