"""Everything that is in one imaginary place: buildings, piers, and ships, never on land nor on each other."""

import math
from dataclasses import dataclass

import numpy as np
import shapely

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import ShipDatasetConfig, Ships
from ifkd.data.synthetic.geometry import Frame
from ifkd.data.synthetic.optical.drawing import Sketch
from ifkd.data.synthetic.optical.harbor import HOUSES, Berth, make_harbor
from ifkd.data.synthetic.optical.scenery import Weather, make_weather
from ifkd.data.synthetic.optical.ships import Hull, Ship, build_ship
from ifkd.data.synthetic.optical.terrain import APRON_M, Terrain, make_terrain

SHIPS_PER_HARBOR = 11
BOATS_PER_KM2, TOWNS_PER_KM2 = 16.0, 0.8
DRY = 0.10  # Terrain height above which there are buildings
OPEN_WATER, AFLOAT = -0.18, -0.01  # Terrain heights below which groups of ships are placed, and a ship floats
EDGE_M = 12.0  # Least distance of ships from the edge of the world
CLEARANCE_M = 18.0  # Least distance of ships at sea from each other
MAX_MISFITS = 250  # Ships in a row without room on open water, after which no more are tried
TRIES = 30  # Places that are tried for a group of ships


@dataclass(frozen=True, slots=True, eq=False)
class CoastWorld:
    """One place. All coordinates are meters from its upper left corner."""

    terrain: Terrain
    weather: Weather
    ground: tuple[Sketch, ...]
    ships: tuple[Ship, ...]
    boats: tuple[Ship, ...]


def make_world(
    config: ShipDatasetConfig, *, place: tuple[int, ...], size_px: tuple[int, int], ships: int, wide: bool
) -> CoastWorld:
    """Return the world of a place with up to `ships` ships; `painter_of` explains the other arguments."""
    rng = np.random.default_rng([config.seed, *place])
    size_m = (size_px[0] * config.gsd_m, size_px[1] * config.gsd_m)
    area_km2 = size_m[0] * size_m[1] / 1e6
    weather = make_weather(config.conditions, rng, wide=wide)
    moored = round(ships * config.ships.moored_fraction)
    terrain = make_terrain(weather.land_level, size_m, math.ceil(moored / SHIPS_PER_HARBOR), rng)
    harbors = [make_harbor(quay, rng) for quay in terrain.quays]
    fleet = _Fleet(config.ships, terrain, size_m, rng)
    for berths, _ in harbors:
        fleet.moor(berths, math.ceil(moored / len(harbors)))
    fleet.put_to_sea(ships - len(fleet.ships))
    fleet.add_boats(rng.poisson(2 * BOATS_PER_KM2 * config.conditions.small_boats * area_km2))
    towns = rng.uniform(0.0, 1.0, (round(area_km2 * TOWNS_PER_KM2), 3)) * (size_m[1], size_m[0], math.pi)
    ground = _make_towns(terrain, [Frame(*town) for town in towns.tolist()], rng)
    ground += [sketch for _, sketches in harbors for sketch in sketches]
    return CoastWorld(terrain, weather, tuple(ground), tuple(fleet.ships), tuple(fleet.boats))


def _make_towns(terrain: Terrain, places: list[Frame], rng: np.random.Generator) -> list[Sketch]:
    """Return houses in rows on dry land, behind harbors and around other places."""
    houses = []
    for town in (*(quay.moved(rng.uniform(-150, 150), -APRON_M - 110.0) for quay in terrain.quays), *places):
        reach = rng.uniform(130.0, 340.0)
        rows = HOUSES.places((-reach, reach), (-reach, reach), rng)
        x, y = town.to_world(rows).T
        free = np.hypot(*rows.T) < reach * rng.uniform(0.5, 1.1, len(rows))
        free &= (terrain.at(y, x) > DRY) & ~terrain.in_harbor(x, y)
        houses += HOUSES.sketches(town, rows[free], rng)
    return houses


class _Fleet:
    """The ships of a world while they are being placed."""

    def __init__(self, config: Ships, terrain: Terrain, size_m: tuple[float, float], rng: np.random.Generator) -> None:
        self.ships: list[Ship] = []
        self.boats: list[Ship] = []
        self._config, self._terrain, self._size_m, self._rng = config, terrain, size_m, rng
        self._hulls: list[shapely.Polygon] = []
        self._counts: dict[Hull, int] = dict.fromkeys(config.classes, 0)

    def moor(self, berths: list[Berth], number: int) -> None:
        """Moor up to `number` ships along berths."""
        aim, rng = len(self.ships) + number, self._rng
        for index in rng.permutation(len(berths)):
            (berth, length_m), position = berths[index], rng.uniform(0.0, 20.0)
            while position < length_m - 50 and len(self.ships) < aim:
                ship = self._next_ship(longest_m=length_m - position + 12.0)
                if ship is None:
                    break
                turn = math.pi * rng.integers(2) + rng.normal(0.0, 0.006)
                place = berth.moved(position + ship.length_m / 2, rng.uniform(0.8, 2.5) + ship.beam_m / 2, turn)
                if rng.random() < 0.88 and self._place(ship.at(place), self.ships, clearance_m=1.0):
                    self._raft(ship.at(place), berth.angle, aim)
                    position += ship.length_m
                position += rng.uniform(8, 30)

    def _raft(self, ship: Ship, berth_angle: float, aim: int) -> None:
        """Moor ships side by side, outward from a ship at a berth, up to `aim` ships in all."""
        rng, fraction = self._rng, self._config.rafted_fraction
        while fraction > 0 and len(self.ships) < aim and rng.random() < fraction:
            other = self._next_ship(longest_m=1.1 * ship.length_m)
            if other is None:
                return
            side, turn = Frame(ship.frame.x, ship.frame.y, berth_angle), math.pi * rng.integers(2)
            off = (ship.beam_m + other.beam_m) / 2 + rng.uniform(1.5, 4.0)
            ship = other.at(side.moved(rng.normal(0.0, 4.0), off, turn + rng.normal(0.0, 0.006)))
            if not self._place(ship, self.ships, clearance_m=1.0):
                return

    def put_to_sea(self, number: int) -> None:
        """Place up to `number` ships on open water in loose groups, some under way, until the water is crowded."""
        aim, rng, misfits = len(self.ships) + number, self._rng, 0
        starts = rng.uniform(0.0, 1.0, (60 + 12 * number, 2)) * np.array(self._size_m)
        for y, x in starts[self._terrain.at(starts[:, 0], starts[:, 1]) < OPEN_WATER].tolist():
            middle, under_way = Frame(x, y, rng.uniform(0, 2 * math.pi)), rng.random() < self._config.under_way_fraction
            wanted = min(len(self.ships) + int(rng.integers(2, 8)), aim)
            if len(self.ships) == aim or misfits > MAX_MISFITS:
                break
            places = middle.to_world(rng.normal(0.0, 150.0, (TRIES, 2)))
            for at_x, at_y in places[self._has_room(places, clearance_m=CLEARANCE_M)].tolist():
                if len(self.ships) < wanted and (ship := self._next_ship()):
                    frame = Frame(at_x, at_y, middle.angle + rng.normal(0.0, 0.2) + math.pi * (rng.random() < 0.3))
                    ship = ship.at(frame, speed=rng.uniform(0.25, 1.0) if under_way else 0.0)
                    outside = not self._terrain.in_harbor(*ship.outline.T).any()
                    fits = outside and self._place(ship, self.ships, clearance_m=CLEARANCE_M)
                    misfits = 0 if fits else misfits + 1

    def add_boats(self, number: int) -> None:
        """Place up to `number` boats anywhere on the water, some under way."""
        rng = self._rng
        for y, x in (rng.uniform(0.0, 1.0, (number, 2)) * np.array(self._size_m)).tolist():
            if (boat := build_ship("boat", rng, similarity=0.0)) is not None:
                frame, speed = Frame(x, y, rng.uniform(0, 2 * math.pi)), max(0.0, rng.uniform(-1.4, 1.0))
                self._place(boat.at(frame, speed=speed), self.boats, clearance_m=6.0)

    def _next_ship(self, longest_m: float = math.inf) -> Ship | None:
        """Return a ship that fits; classes that are rare so far are likelier."""
        classes = self._config.classes
        odds = (1.0 + np.array([self._counts[category] for category in classes])) ** -2.0
        for index in self._rng.choice(len(classes), size=len(classes), replace=False, p=odds / odds.sum()):
            ship = build_ship(classes[index], self._rng, similarity=self._config.similarity, longest_m=longest_m)
            if ship is not None:
                return ship
        return None

    def _has_room(self, places: Array, *, clearance_m: float) -> Array:
        """Return which of the places [n, 2] could be the middle of a ship: cheap, before a ship is built for them."""
        x, y = places.T
        height, width = self._size_m
        free = (np.minimum.reduce([x, y, width - x, height - y]) > EDGE_M) & ~self._terrain.in_harbor(x, y)
        crowded, _ = shapely.STRtree(self._hulls).query(shapely.points(places), "dwithin", clearance_m)
        free[crowded] = False
        free[free] = self._terrain.at(y[free], x[free]) < AFLOAT
        return free

    def _place(self, ship: Ship, placed: list[Ship], *, clearance_m: float) -> bool:
        """Add the ship to `placed` if it floats inside the world, apart from all others; return whether it does."""
        x, y = np.concatenate([ship.outline, [(ship.frame.x, ship.frame.y)]]).T
        hull, (height, width) = shapely.Polygon(ship.outline), self._size_m
        fits = bool(min(x.min(), y.min(), width - x.max(), height - y.max()) > EDGE_M)
        fits = fits and not shapely.dwithin(hull, self._hulls, clearance_m).any()
        if fits := fits and bool((self._terrain.at(y, x) < AFLOAT).all()):
            placed.append(ship)
            self._hulls.append(hull)
            if placed is self.ships:
                self._counts[ship.category] += 1
        return fits
