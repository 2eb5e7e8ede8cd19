"""A world: everything that stands, lies or sails in one imaginary place, before it is painted."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.config import Synthetic
from ifkd.data.synthetic.decks import ship_sketch
from ifkd.data.synthetic.drawing import Frame, Sketch
from ifkd.data.synthetic.fleet import Fleet
from ifkd.data.synthetic.harbour import HARBOUR_KINDS, make_harbour
from ifkd.data.synthetic.settlement import make_roads, make_small_boats, make_towns
from ifkd.data.synthetic.ships import Ship
from ifkd.data.synthetic.terrain import Basin, Terrain
from ifkd.data.synthetic.weather import Weather, make_weather

SHIPS_PER_HARBOUR = 11
COAST_STEP_M = 16.0
LEAST_WATER = 0.33


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """One place. All coordinates are metres from its upper left corner."""

    seed: int
    size_m: tuple[float, float]
    """Height and width."""
    terrain: Terrain
    weather: Weather
    ground: tuple[Sketch, ...]
    """Drawn first: roads, buildings, piers, boats."""
    ships: tuple[Ship, ...]
    overhead: tuple[Sketch, ...]
    """Drawn over the ships."""
    small_wakes: tuple[Ship, ...]
    """Boats that are not labelled and of which only the wake is painted."""

    def drawings(self) -> list[Sketch]:
        """Return all drawings in the order in which they are laid on each other."""
        return [*self.ground, *(ship_sketch(ship) for ship in self.ships), *self.overhead]


def make_world(config: Synthetic, *, place: tuple[int, ...], size_px: tuple[int, int], ships: int, wide: bool) -> World:
    """Return the world of a place.

    Args:
        config: The data set's configuration.
        place: Numbers that name the place; with the configuration they decide everything in it.
        size_px: Height and width.
        ships: How many ships to put to sea and to moor; fewer where they find no room.
        wide: Whether the place is a scene rather than a place tiles are cut from.
    """
    rng = np.random.default_rng([config.seed, *place])
    size_m = (size_px[0] * config.gsd_m, size_px[1] * config.gsd_m)
    weather = make_weather(config.conditions, rng, wide=wide)
    natural = _terrain_with_water(weather.land_level, size_m, rng)
    seed = natural.seed
    moored = round(ships * config.ships.moored_share)
    wanted = math.ceil(moored / SHIPS_PER_HARBOUR)
    basins = find_basins(natural, size_m, wanted, rng)
    terrain = Terrain(seed, natural.level, tuple(basins))
    kinds = rng.permutation(np.resize(rng.permutation(len(HARBOUR_KINDS)), max(len(basins), 1)))
    harbours = [make_harbour(HARBOUR_KINDS[kind], basin, rng) for kind, basin in zip(kinds, basins, strict=False)]
    fleet = Fleet(config.ships, terrain, size_m, rng)
    for harbour in harbours:
        fleet.moor(harbour, math.ceil(moored / max(len(harbours), 1)))
    fleet.put_to_sea(ships - len(fleet.ships), harbours)
    boats, small_wakes = make_small_boats(terrain, size_m, fleet, rng, abundance=config.conditions.small_boats)
    roads = make_roads(terrain, harbours, rng)
    towns = make_towns(terrain, size_m, harbours, rng)
    below = [sketch for harbour in harbours for sketch in harbour.below]
    above = [sketch for harbour in harbours for sketch in harbour.above]
    return World(
        seed=seed,
        size_m=size_m,
        terrain=terrain,
        weather=weather,
        ground=(*roads, *towns, *below, *boats),
        ships=tuple(fleet.ships),
        overhead=tuple(above),
        small_wakes=tuple(small_wakes),
    )


def _terrain_with_water(level: float, size_m: tuple[float, float], rng: np.random.Generator) -> Terrain:
    """Return a natural terrain of which at least a third of the place is water."""
    y, x = np.arange(0.0, size_m[0], 4 * COAST_STEP_M), np.arange(0.0, size_m[1], 4 * COAST_STEP_M)
    while True:
        terrain = Terrain(int(rng.integers(2**24)) * 64, level)
        if float((terrain.grid(y, x) < 0).mean()) > LEAST_WATER:
            return terrain
        level += 0.1


def find_basins(terrain: Terrain, size_m: tuple[float, float], wanted: int, rng: np.random.Generator) -> list[Basin]:
    """Return up to `wanted` places on the coast where a harbour fits, none touching another."""
    y = np.arange(0.0, size_m[0], COAST_STEP_M)
    x = np.arange(0.0, size_m[1], COAST_STEP_M)
    land = terrain.grid(y, x) > 0
    coast = np.argwhere(land[:-1, :-1] != land[1:, 1:])
    basins: list[Basin] = []
    for index in rng.permutation(len(coast))[: wanted * 60]:
        if len(basins) == wanted:
            break
        row, column = coast[index]
        basin = _basin_at(terrain, float(x[column]), float(y[row]), rng)
        apart = all(
            math.hypot(basin.frame.x - other.frame.x, basin.frame.y - other.frame.y)
            > basin.radius_m + other.radius_m - 120.0
            for other in basins
        )
        if apart and _fits(terrain, basin):
            basins.append(basin)
    return basins


def _basin_at(terrain: Terrain, x: float, y: float, rng: np.random.Generator) -> Basin:
    offsets = np.array([140.0, -140.0, 0.0, 0.0])
    heights = terrain.at(y + offsets[::-1], x + offsets)
    down_x, down_y = float(heights[1] - heights[0]), float(heights[2] - heights[3])
    # v points to the sea; it is u turned clockwise by a quarter.
    angle = math.atan2(-down_x, down_y)
    return Basin(Frame(x, y, angle), rng.uniform(170.0, 330.0), rng.uniform(270.0, 360.0))


def _fits(terrain: Terrain, basin: Basin) -> bool:
    """Say whether there is mostly land behind the quay and water before it, far enough out."""
    u = np.linspace(-1.0, 1.0, 7) * basin.half_length_m
    return (
        _land_share(terrain, basin, u, np.array([-70.0, -120.0])) > 0.6
        and _land_share(terrain, basin, u, np.linspace(90.0, basin.reach_m + 140.0, 5)) < 0.25
    )


def _land_share(terrain: Terrain, basin: Basin, u: Array, v: Array) -> float:
    local = np.stack(np.meshgrid(u, v, indexing="ij"), axis=-1).reshape(-1, 2)
    x, y = basin.frame.to_world(local).T
    return float((terrain.at(y, x) > 0).mean())
