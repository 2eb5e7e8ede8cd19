"""A radar's picture of airfields: any window of it, and the truth about the aircraft in it."""

import math
from collections import OrderedDict

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.noise import Fractal, smoothstep
from ifkd.data.synthetic.picture import LEAST_EXTENT_PX, LEAST_VISIBLE, Truth, clip_polygon, polygon_area, touching
from ifkd.data.synthetic.sar.airfield import Airfields, Strip
from ifkd.data.synthetic.sar.config import SarAircraft
from ifkd.data.synthetic.sar.echoes import REACH_PX, Echoes, echoes_of, speckled
from ifkd.data.synthetic.sea import Grid

KEPT = 512
"""Groups of echoes that are kept for the next window."""
DN_OF_GRASS = {8: 45.0, 16: 400.0}
"""Grey level of the mean amplitude of grass, by the bits of a pixel: one scale for all pictures."""
SHADE_LEFT = 0.06
"""Intensity left in shadows: the sensor's own noise."""
LAID_OVER = 2.2
"""Mean intensity where a building lies over, against grass."""
WALL = 40.0
"""Intensity of the corner of ground and a wall that faces the sensor squarely."""
WALL_WIDTH_RAD = 0.3


class SarPainter:
    """Paints windows of airfields; the pixels do not depend on how the world is cut into windows."""

    def __init__(self, world: Airfields, config: SarAircraft) -> None:
        self.world = world
        self._config = config
        self._slope = math.tan(math.radians(config.radar.incidence_deg))
        self._ground = np.array([strip.bounds(2.0) for strip in world.ground]).reshape(-1, 4)
        reach = [max(strip.height / self._slope, strip.height * self._slope) + 4.0 for strip in world.buildings]
        self._built = np.array(
            [strip.bounds(room) for strip, room in zip(world.buildings, reach, strict=True)]
        ).reshape(-1, 4)
        self._groups: list[tuple[Array, Array, Array | None]] = [
            (one.places, one.echoes, one.shadow) for one in world.aircraft
        ]
        self._groups += [(places, echoes, None) for places, echoes in world.vehicles]
        self._group_bounds = np.array([_bounds(places, shadow) for places, _, shadow in self._groups]).reshape(-1, 4)
        self._echoes: OrderedDict[int, Echoes] = OrderedDict()

    @property
    def boxes(self) -> Array:
        """The aircraft's boxes, float64 [n, 4], x1 y1 x2 y2, pixels of the world."""
        return np.array([one.bounds for one in self.world.aircraft]).reshape(-1, 4) / self._config.gsd_m

    def paint(self, window: Window) -> Array:
        """Return a window's amplitudes as uint8 or uint16 [height, width, 1]."""
        radar = self._config.radar
        grid = Grid(
            np.arange(window.top - REACH_PX, window.bottom + REACH_PX),
            np.arange(window.left - REACH_PX, window.right + REACH_PX),
            self._config.gsd_m,
        )
        intensity = self._mean_intensity(grid)
        field = np.zeros((window.height, window.width), np.complex64)
        for index in np.flatnonzero(touching(self._group_bounds, grid, room_px=REACH_PX + 2)):
            self._add(self._group(int(index)), grid, field, intensity)
        power = np.zeros(field.shape, np.float32)
        for look in range(radar.looks):
            ground = speckled(
                intensity,
                grid.rows,
                grid.columns,
                resolution_px=radar.resolution_px,
                seed=self.world.seed + 8,
                look=look,
            )
            power += np.abs(ground + field) ** 2
        # a Rayleigh amplitude's mean is sqrt(pi / 4) of the root of its mean intensity
        level = DN_OF_GRASS[radar.bits] / math.sqrt(math.pi / 4)
        amplitude = np.sqrt(power / radar.looks) * np.float32(level)
        top = 2**radar.bits - 1
        return np.rint(amplitude.clip(0, top)).astype(np.dtype(self._config.pixel[0]))[..., None]

    def truths(self, window: Window) -> list[Truth]:
        """Return the aircraft of a window."""
        found = []
        for one in self.world.aircraft:
            outline = one.outline / self._config.gsd_m - np.array([window.left, window.top])
            inside = clip_polygon(outline, (window.height, window.width))
            if not len(inside):
                continue
            (x1, y1), (x2, y2) = inside.min(axis=0), inside.max(axis=0)
            if min(x2 - x1, y2 - y1) < LEAST_EXTENT_PX:
                continue
            found.append(
                Truth(
                    kind=one.kind,
                    box=(float(x1), float(y1), float(x2), float(y2)),
                    outline=inside,
                    heading_deg=(math.degrees(one.frame.angle) + 90.0) % 360.0,
                    ignore=polygon_area(inside) < LEAST_VISIBLE * polygon_area(outline),
                )
            )
        return found

    def _mean_intensity(self, grid: Grid) -> Array:
        """Return what the ground and the buildings send back on average, float32 [rows, columns]."""
        seed = self.world.seed
        rough = Fractal(seed, 160.0, 6, 0.6).grid(grid.y, grid.x)
        bushes = smoothstep((Fractal(seed + 1, 90.0, 4, 0.6).grid(grid.y, grid.x) - 1.1) * 2.0)
        intensity = np.exp(np.float32(0.35) * rough) * (1.0 + 2.5 * bushes)
        worn = np.exp(np.float32(0.25) * Fractal(seed + 2, 24.0, 4, 0.7).grid(grid.y, grid.x))
        for index in np.flatnonzero(touching(self._ground, grid)):
            strip = self.world.ground[index]
            cover = _cover(strip, grid, 0.0)
            intensity += (strip.intensity * worn - intensity) * cover
        for index in np.flatnonzero(touching(self._built, grid)):
            self._raise(self.world.buildings[index], grid, intensity)
        return intensity.astype(np.float32)

    def _raise(self, building: Strip, grid: Grid, intensity: Array) -> None:
        """Put up a building, in place: shadow behind it, roof and wall laid over before it, a bright foot."""
        behind, before = building.height * self._slope, building.height / self._slope
        base, roof = _cover(building, grid, 0.0), _cover(building, grid, -before)
        shifts = np.linspace(0.0, behind, 2 + int(behind / 12.0))
        hidden = np.maximum.reduce([_cover(building, grid, shift) for shift in shifts])
        intensity *= 1.0 - np.float32(1.0 - SHADE_LEFT) * hidden
        intensity += (building.intensity - intensity) * roof
        shifts = np.linspace(0.0, before, 2 + int(before / 8.0))
        laid_over = np.maximum.reduce([_cover(building, grid, -shift) for shift in shifts])
        intensity += np.float32(LAID_OVER) * np.clip(laid_over - base, 0.0, 1.0)
        foot = np.clip(base - _cover(building, grid, 2.5), 0.0, 1.0)
        square = math.remainder(building.frame.angle, math.pi / 2)
        intensity += np.float32(WALL * math.exp(-((square / WALL_WIDTH_RAD) ** 2)) + 2.0) * foot

    def _add(self, group: Echoes, grid: Grid, field: Array, intensity: Array) -> None:
        """Add a group's echoes to `field`, and its shadow to the wider `intensity`, in place."""
        top, left = int(grid.rows[0]), int(grid.columns[0])
        if group.shade is not None:
            here, there = _overlap((top, left), intensity.shape, (group.top, group.left), group.shade.shape)
            intensity[here] *= 1.0 - np.float32(1.0 - SHADE_LEFT) * group.shade[there]
        here, there = _overlap(
            (top + REACH_PX, left + REACH_PX), field.shape, (group.top, group.left), group.field.shape
        )
        field[here] += group.field[there]

    def _group(self, index: int) -> Echoes:
        group = self._echoes.pop(index, None)
        if group is None:
            places, echoes, shadow = self._groups[index]
            gsd = self._config.gsd_m
            group = echoes_of(
                places / gsd,
                echoes,
                resolution_px=self._config.radar.resolution_px,
                shadow_px=None if shadow is None else shadow / gsd,
            )
        self._echoes[index] = group
        if len(self._echoes) > KEPT:
            self._echoes.popitem(last=False)
        return group


def _cover(strip: Strip, grid: Grid, shift_m: float) -> Array:
    """Return how much a strip, moved to the right, covers each pixel, float32 0 to 1."""
    u, v = strip.frame.to_local(grid.x[None, :] - shift_m, grid.y[:, None])
    along = np.clip((strip.half_length - np.abs(u)) / grid.gsd_m + 0.5, 0.0, 1.0)
    across = np.clip((strip.half_width - np.abs(v)) / grid.gsd_m + 0.5, 0.0, 1.0)
    return np.asarray(along * across, np.float32)


def _overlap(
    origin: tuple[int, int], size: tuple[int, ...], other: tuple[int, int], other_size: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the slices of two arrays, given by origin and size, where both lie; empty ones where they do not."""
    here, there = [], []
    for start, length, begin, count in zip(origin, size, other, other_size, strict=True):
        low, high = max(start, begin), min(start + length, begin + count)
        high = max(low, high)
        here.append(slice(low - start, high - start))
        there.append(slice(low - begin, high - begin))
    return (here[0], here[1]), (there[0], there[1])


def _bounds(places: Array, shadow: Array | None) -> tuple[float, float, float, float]:
    every = places if shadow is None else np.concatenate([places, shadow])
    (x1, y1), (x2, y2) = every.min(axis=0), every.max(axis=0)
    return float(x1), float(y1), float(x2), float(y2)
