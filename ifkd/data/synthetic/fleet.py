"""Where ships lie and sail: moored along berths, at anchor, under way; never on land nor on each other."""

import math
from collections import Counter

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import ShipClass, Ships
from ifkd.data.synthetic.drawing import Frame
from ifkd.data.synthetic.harbour import Berth, Harbour, HarbourKind
from ifkd.data.synthetic.ships import Build, Ship, build_ship
from ifkd.data.synthetic.terrain import Terrain

CUSTOMERS: dict[HarbourKind, tuple[ShipClass, ...]] = {
    "naval": ("aircraft_carrier", "destroyer", "frigate"),
    "container": ("container_ship",),
    "oil": ("oil_tanker",),
    "bulk": ("bulk_carrier",),
    "ferry": ("ferry",),
    "general": ("bulk_carrier", "container_ship", "oil_tanker", "ferry"),
}
AT_HOME = 16.0
"""How much likelier a class is in a harbour of its own kind; not so likely that the quay gives it away."""
DEPTH = -0.06
"""Terrain height that carries a ship."""
EDGE_M = 12.0
"""Ships keep this far inside the world."""


class Fleet:
    """The ships of a world while they find their places."""

    def __init__(self, config: Ships, terrain: Terrain, size_m: tuple[float, float], rng: np.random.Generator) -> None:
        self.ships: list[Ship] = []
        self._circles = np.zeros((64, 3))
        self._config = config
        self._terrain = terrain
        self._size_m = size_m
        self._rng = rng
        self._counts: Counter[ShipClass] = Counter()

    def moor(self, harbour: Harbour, number: int) -> None:
        """Moor up to `number` ships along the berths of a harbour."""
        aim = len(self.ships) + number
        for index in self._rng.permutation(len(harbour.berths)):
            position = self._rng.uniform(0.0, 20.0)
            berth = harbour.berths[index]
            while position < berth.length_m - 50 and len(self.ships) < aim:
                position = self._moor_next(harbour, berth, position)

    def _moor_next(self, harbour: Harbour, berth: Berth, position: float) -> float:
        """Moor one ship, if chance wills, and return where the next may begin."""
        rng = self._rng
        if rng.random() < 0.12:
            return float(position + rng.uniform(30, 90))
        build = self._next_build(longest_m=berth.length_m - position + 12.0, harbour=harbour)
        if build is None:
            return berth.length_m
        gap = rng.uniform(0.8, 2.5)
        if not self._lay_alongside(berth, build, position, gap):
            return position + 30.0
        if rng.random() < 0.14:  # a second one lies alongside the first
            second = self._next_build(longest_m=build.length_m * 1.1, harbour=harbour)
            if second is not None:
                self._lay_alongside(berth, second, position, gap + build.beam_m + rng.uniform(1.5, 3.0))
        return float(position + build.length_m + rng.uniform(8, 26))

    def _lay_alongside(self, berth: Berth, build: Build, position: float, gap: float) -> bool:
        middle = np.array([[position + build.length_m / 2, gap + build.beam_m / 2]])
        x, y = berth.frame.to_world(middle)[0]
        turn = math.pi if self._rng.random() < 0.5 else 0.0
        lean = self._rng.normal(0.0, 0.006)
        ship = build.at(Frame(float(x), float(y), berth.frame.angle + turn + lean))
        return self._settle(ship, clearance_m=1.0)

    def put_to_sea(self, number: int, harbours: list[Harbour]) -> None:
        """Place `number` ships on open water in loose groups, some under way."""
        rng = self._rng
        aim = len(self.ships) + number
        for _ in range(60 + 12 * number):
            if len(self.ships) >= aim:
                return
            y, x = rng.uniform(0, self._size_m[0]), rng.uniform(0, self._size_m[1])
            if float(self._terrain.at(np.array([y]), np.array([x]))[0]) > 3 * DEPTH:
                continue
            heading, size = rng.uniform(0, 2 * math.pi), int(rng.integers(2, 8))
            under_way = rng.random() < self._config.under_way_share
            for _ in range(min(size, aim - len(self.ships))):
                self._anchor(x, y, heading, under_way=under_way, harbours=harbours)

    def _anchor(self, x: float, y: float, heading: float, *, under_way: bool, harbours: list[Harbour]) -> None:
        """Place one ship of a group; give up after a few tries."""
        rng = self._rng
        build = self._next_build(longest_m=math.inf, harbour=None)
        assert build is not None
        for _ in range(8):
            place = rng.normal(0.0, 150.0, 2)
            angle = heading + rng.normal(0.0, 0.2) + (math.pi if rng.random() < 0.3 else 0.0)
            if under_way and rng.random() < 0.25:
                angle = rng.uniform(0, 2 * math.pi)
            speed = rng.uniform(0.25, 1.0) if under_way else 0.0
            ship = build.at(Frame(x + place[0], y + place[1], angle), speed=speed)
            if not _in_harbour(ship, harbours) and self._settle(ship, clearance_m=18.0):
                return

    def _next_build(self, *, longest_m: float, harbour: Harbour | None) -> Build | None:
        """Return a ship of the class whose turn it is: rarer ones so far, and customers of the harbour."""
        classes = self._config.classes
        wishes = []
        for kind in classes:
            share = self._config.weights.get(kind, 1.0)
            wish = share / (1.0 + self._counts[kind] / share) ** 2
            if harbour is not None and kind in CUSTOMERS[harbour.kind]:
                wish *= AT_HOME
            wishes.append(wish)
        chances = np.array(wishes) / sum(wishes)
        for index in self._rng.choice(len(classes), size=len(classes), replace=False, p=chances):
            build = build_ship(classes[index], self._rng, similarity=self._config.similarity, longest_m=longest_m)
            if build is not None:
                return build
        return None

    def _settle(self, ship: Ship, *, clearance_m: float) -> bool:
        """Keep the ship if it floats free inside the world."""
        x1, y1, x2, y2 = ship.bounds
        height, width = self._size_m
        if x1 < EDGE_M or y1 < EDGE_M or x2 > width - EDGE_M or y2 > height - EDGE_M:
            return False
        if self.is_near(ship, clearance_m) or not self._floats(ship):
            return False
        if len(self.ships) == len(self._circles):
            self._circles = np.concatenate([self._circles, np.zeros_like(self._circles)])
        self._circles[len(self.ships)] = ship.frame.x, ship.frame.y, ship.length_m / 2
        self.ships.append(ship)
        self._counts[ship.kind] += 1
        return True

    def is_near(self, ship: Ship, clearance_m: float) -> bool:
        """Say whether a ship comes closer than `clearance_m` to one that is already placed."""
        x, y, half = self._circles[: len(self.ships)].T
        room = half + ship.length_m / 2 + clearance_m
        near = np.flatnonzero((x - ship.frame.x) ** 2 + (y - ship.frame.y) ** 2 < room**2)
        return any(_rectangles_meet(ship, self.ships[index], clearance_m) for index in near)

    def _floats(self, ship: Ship) -> bool:
        points = np.concatenate([ship.outline, [[ship.frame.x, ship.frame.y]]])
        return bool((self._terrain.at(points[:, 1], points[:, 0]) < DEPTH / 6).all())


def _in_harbour(ship: Ship, harbours: list[Harbour]) -> bool:
    """Say whether any of a ship is where piers may be."""
    points = ship.outline
    for harbour in harbours:
        basin = harbour.basin
        u, v = basin.frame.to_local(points[:, 0], points[:, 1])
        if ((np.abs(u) < basin.half_length_m + 10) & (v < basin.reach_m)).any():
            return True
    return False


def _rectangles_meet(one: Ship, other: Ship, clearance_m: float) -> bool:
    """Say whether the bounding rectangles along the ships' own axes meet, one of them grown by a clearance."""
    a, b = _corners(one, clearance_m), _corners(other, 0.0)
    for angle in (one.frame.angle, other.frame.angle):
        for axis in (np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])):
            p, q = (a * axis).sum(axis=1), (b * axis).sum(axis=1)
            if p.max() < q.min() or q.max() < p.min():
                return False
    return True


def _corners(ship: Ship, margin_m: float) -> Array:
    u, v = ship.length_m / 2 + margin_m, ship.beam_m / 2 + margin_m
    return ship.frame.to_world(np.array([(u, v), (u, -v), (-u, -v), (-u, v)]))
