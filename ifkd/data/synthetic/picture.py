"""Painting a world: any window of it, and the truth about the ships in it."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import Synthetic
from ifkd.data.synthetic.drawing import Sketch, Stamp
from ifkd.data.synthetic.land import land_colour, with_harbour_ground
from ifkd.data.synthetic.noise import Fractal
from ifkd.data.synthetic.sea import Grid, sea_colour
from ifkd.data.synthetic.ships import Ship
from ifkd.data.synthetic.sky import blur_margin, cloud_cover, sensed, with_sky
from ifkd.data.synthetic.wakes import FOAM, wake_bounds, wake_cover
from ifkd.data.synthetic.world import World

STAMPS_KEPT = 512
LEAST_VISIBLE = 0.4
"""Share of a ship's area inside the picture below which it is an ignore region rather than an object."""
LEAST_EXTENT_PX = 1.0
"""Side of a box below which a ship cut by the border is left out altogether."""
LEAST_CLEAR = 0.5
"""Share of a ship's light that clouds must let through for it to count as an object."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """One ship or aircraft as seen in a picture."""

    kind: str
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2, pixels of the picture: the bounds of the silhouette inside it."""
    outline: Array
    """float64 [n, 2], x, y in pixels of the picture: the silhouette inside it."""
    heading_deg: float
    """Where the bow points, degrees clockwise from the top of the picture."""
    ignore: bool
    """Whether too little of it can be seen to count."""


class Painter:
    """Paints windows of one world; the pixels do not depend on how the world is cut into windows."""

    def __init__(self, world: World, config: Synthetic) -> None:
        self.world = world
        self._config = config
        self._drawings = world.drawings()
        sun = world.weather.sun
        self._bounds = np.array([drawing.bounds(sun) for drawing in self._drawings]).reshape(-1, 4)
        self._stamps: OrderedDict[int, Stamp] = OrderedDict()
        self._sailing = [ship for ship in (*world.ships, *world.small_wakes) if ship.speed > 0]
        self._wake_bounds = np.array([wake_bounds(ship) for ship in self._sailing]).reshape(-1, 4)

    @property
    def boxes(self) -> Array:
        """The ships' boxes, float64 [n, 4], x1 y1 x2 y2, pixels of the world."""
        return np.array([ship.bounds for ship in self.world.ships]).reshape(-1, 4) / self._config.gsd_m

    def paint(self, window: Window) -> Array:
        """Return a window as uint8 [height, width, 3]."""
        conditions = self._config.conditions
        margin = blur_margin(conditions.blur_px)
        grid = Grid(
            np.arange(window.top - margin, window.bottom + margin),
            np.arange(window.left - margin, window.right + margin),
            self._config.gsd_m,
        )
        world = self.world
        height = world.terrain.grid(grid.y, grid.x)
        colour = self._surface(grid, height)
        self._lay_stamps(grid, colour)
        colour = with_sky(grid, colour, world.weather, world.seed + 40) * world.weather.gain
        return sensed(grid, colour, blur_px=conditions.blur_px, noise_dn=conditions.noise_dn, seed=world.seed + 50)

    def truths(self, window: Window) -> list[Truth]:
        """Return the ships of a window."""
        truths = [self._truth(ship, window) for ship in self.world.ships]
        return [truth for truth in truths if truth is not None]

    def _surface(self, grid: Grid, height: Array) -> Array:
        world = self.world
        is_land = height > 0
        if is_land.all():
            colour = np.zeros((*height.shape, 3), np.float32)
        else:
            colour = sea_colour(grid, height, world.weather, world.seed)
            for index in np.flatnonzero(touching(self._wake_bounds, grid)):
                part, here = _part_of(grid, self._wake_bounds[index])
                cover = wake_cover(self._sailing[index], part, world.seed)[..., None]
                colour[here] += (FOAM - colour[here]) * cover
        if is_land.any():
            ground = land_colour(grid, height, world.weather, world.seed + 20)
            ground = with_harbour_ground(grid, ground, world.terrain, world.seed)
            colour = np.where(is_land[..., None], ground, colour)
        return colour.astype(np.float32)

    def _lay_stamps(self, grid: Grid, colour: Array) -> None:
        """Lay all drawings that touch the grid on `colour`, in place."""
        here_drawn = np.flatnonzero(touching(self._bounds, grid))
        if not len(here_drawn):
            return
        wear = Fractal(self.world.seed + 45, 24.0, 4, 0.8).grid(grid.y, grid.x)
        wear = (1.0 + 0.055 * wear).astype(np.float32)[..., None]
        top, left = int(grid.rows[0]), int(grid.columns[0])
        for index in here_drawn:
            stamp = self._stamp(int(index))
            high, wide = stamp.transmission.shape
            row0, row1 = max(stamp.top, top), min(stamp.top + high, top + len(grid.rows))
            column0, column1 = max(stamp.left, left), min(stamp.left + wide, left + len(grid.columns))
            if row0 >= row1 or column0 >= column1:
                continue
            here = np.s_[row0 - top : row1 - top, column0 - left : column1 - left]
            there = np.s_[row0 - stamp.top : row1 - stamp.top, column0 - stamp.left : column1 - stamp.left]
            through = stamp.transmission[there].astype(np.float32)[..., None] * np.float32(1 / 255)
            colour[here] = colour[here] * through + stamp.light[there] * wear[here]

    def _stamp(self, index: int) -> Stamp:
        stamp = self._stamps.pop(index, None)
        if stamp is None:
            drawing: Sketch = self._drawings[index]
            stamp = drawing.stamp(self.world.weather.sun, self._config.gsd_m)
        self._stamps[index] = stamp
        if len(self._stamps) > STAMPS_KEPT:
            self._stamps.popitem(last=False)
        return stamp

    def _truth(self, ship: Ship, window: Window) -> Truth | None:
        outline = ship.outline / self._config.gsd_m - np.array([window.left, window.top])
        inside = clip_polygon(outline, (window.height, window.width))
        if not len(inside):
            return None
        area = polygon_area(inside)
        (x1, y1), (x2, y2) = inside.min(axis=0), inside.max(axis=0)
        if min(x2 - x1, y2 - y1) < LEAST_EXTENT_PX:
            return None
        points = np.concatenate([ship.outline[::4], [[ship.frame.x, ship.frame.y]]])
        clear = 1.0
        if np.isfinite(self.world.weather.cloud_level):
            cover = cloud_cover(self.world.weather, self.world.seed + 40, points[:, 1], points[:, 0])
            clear = 1.0 - float(cover.mean())
        return Truth(
            kind=ship.kind,
            box=(float(x1), float(y1), float(x2), float(y2)),
            outline=inside,
            heading_deg=(float(np.degrees(ship.frame.angle)) + 90.0) % 360.0,
            ignore=area < LEAST_VISIBLE * polygon_area(outline) or clear < LEAST_CLEAR,
        )


def clip_polygon(points: Array, size: tuple[int, int]) -> Array:
    """Return the part of a polygon [n, 2] inside a picture of `size` (height, width), [m, 2]; m may be 0.

    The algorithm is that of Sutherland and Hodgman.
    """
    height, width = size
    for axis, limit, sign in ((0, 0.0, 1.0), (0, float(width), -1.0), (1, 0.0, 1.0), (1, float(height), -1.0)):
        kept: list[Array] = []
        for index in range(len(points)):
            previous, current = points[index - 1], points[index]
            before, now = sign * (previous[axis] - limit), sign * (current[axis] - limit)
            if (before < 0) != (now < 0):
                crossing = previous + (current - previous) * (before / (before - now))
                crossing[axis] = limit
                kept.append(crossing)
            if now >= 0:
                kept.append(current)
        points = np.array(kept).reshape(-1, 2)
    return points


def polygon_area(points: Array) -> float:
    """Return the area of a polygon [n, 2]; 0 for fewer than three points."""
    if len(points) < 3:
        return 0.0
    x, y = points.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)


def _part_of(grid: Grid, bounds: Array) -> tuple[Grid, tuple[slice, slice]]:
    """Return the part of a grid inside x1, y1, x2, y2 in metres (at least a pixel), and where it is."""
    x1, y1, x2, y2 = (int(value) for value in np.floor(bounds / grid.gsd_m))
    top, left = int(grid.rows[0]), int(grid.columns[0])
    row = min(max(y1 - top, 0), len(grid.rows) - 1)
    column = min(max(x1 - left, 0), len(grid.columns) - 1)
    here = (slice(row, max(y2 + 1 - top, row + 1)), slice(column, max(x2 + 1 - left, column + 1)))
    return Grid(grid.rows[here[0]], grid.columns[here[1]], grid.gsd_m), here


def touching(bounds: Array, grid: Grid, *, room_px: int = 2) -> Array:
    """Return which bounds [n, 4] in metres touch the grid, some room allowed."""
    x1, y1, x2, y2 = grid.bounds
    room = room_px * grid.gsd_m
    result: Array = (
        (bounds[:, 0] < x2 + room)
        & (bounds[:, 2] > x1 - room)
        & (bounds[:, 1] < y2 + room)
        & (bounds[:, 3] > y1 - room)
    )
    return result
