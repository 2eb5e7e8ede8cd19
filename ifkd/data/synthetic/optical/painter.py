"""Optical images of coasts: any window of a world, and the labels of the ships in it."""

import math
from functools import cache

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.config import ShipDatasetConfig
from ifkd.data.synthetic.geometry import PixelGrid, enlarged
from ifkd.data.synthetic.labels import LabelSource, PlacedObject
from ifkd.data.synthetic.noise import Noise
from ifkd.data.synthetic.optical.decks import TALLEST_M, ship_sketch, wake_sketch
from ifkd.data.synthetic.optical.drawing import StampSet
from ifkd.data.synthetic.optical.scenery import add_sky, capture, cloud_cover, land_color, sea_color
from ifkd.data.synthetic.optical.world import CoastWorld

MIN_CLEAR = 0.5  # Fraction of a ship's light that clouds must let through for it to count as an object
LAND_SEED, SKY_SEED, WEAR_SEED, SENSOR_SEED = 100, 300, 400, 500  # Seeds relative to that of the world


class ShipPainter(LabelSource):
    """Paints windows of one world; the pixels do not depend on how the world is cut into windows."""

    def __init__(self, world: CoastWorld, config: ShipDatasetConfig) -> None:
        super().__init__(world.ships, config.gsd_m)
        self.world, self._config = world, config
        afloat = (*world.boats, *world.ships)
        wakes, shadow = [wake_sketch(ship) for ship in afloat if ship.speed > 0], world.weather.shadow
        self._wakes, self._ground = (StampSet(each, shadow, config.gsd_m) for each in (wakes, world.ground))
        self._sketch = cache(lambda index: ship_sketch(afloat[index]))  # most ships are in no window
        self._hulls = np.array([ship.bounds for ship in afloat]).reshape(-1, 4)
        self._shadow_px = math.ceil(TALLEST_M * math.hypot(*shadow) / config.gsd_m) + 2

    def paint(self, window: Window) -> Array:
        """Return a window as uint8 [height, width, 3]."""
        world, conditions = self.world, self._config.conditions
        seed, weather = world.terrain.seed, world.weather
        grid = PixelGrid(enlarged(window, math.ceil(3 * conditions.blur_px)), self._config.gsd_m)
        height = world.terrain.grid(*grid.axes)
        is_land = height > 0
        wear = 1.0 + np.float32(0.055) * Noise(seed + WEAR_SEED, 24.0, 4, 0.8).grid(*grid.axes)[..., None]
        color = sea_color(grid, height, weather, seed)
        self._wakes.add_to(color, grid, wear)
        if is_land.any():
            color = np.where(is_land[..., None], land_color(grid, height, weather, seed + LAND_SEED), color)
        self._ground.add_to(color, grid, wear)
        near = [self._sketch(index) for index in grid.touching(self._hulls, room_px=self._shadow_px)]
        StampSet(near, weather.shadow, grid.gsd_m).add_to(color, grid, wear)
        color = add_sky(grid, color, weather, seed + SKY_SEED)
        return capture(PixelGrid(window, grid.gsd_m), color, conditions, seed + SENSOR_SEED)

    def _is_hidden(self, one: PlacedObject) -> bool:
        x, y = np.concatenate([one.outline[::4], [(one.frame.x, one.frame.y)]]).T
        cover = cloud_cover(self.world.weather, self.world.terrain.seed + SKY_SEED, y, x)
        return float(cover.mean()) > 1.0 - MIN_CLEAR
