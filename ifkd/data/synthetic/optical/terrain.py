"""Height of land and depth of water: a natural coast, straightened where harbors are."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.geometry import Frame
from ifkd.data.synthetic.noise import Noise, smoothstep

HALF_QUAY_M, REACH_M, APRON_M = 250.0, 320.0, 150.0  # Of a harbor's quay, the water before and the ground behind it
FADE_M = 90.0  # Width of the belt in which a harbor's straight shore turns into the natural one
RADIUS_M = math.hypot(HALF_QUAY_M, REACH_M) + FADE_M  # Distance beyond which a harbor changes nothing
COAST_STEP_M = 16.0
MIN_WATER = 0.33  # Least fraction of water in a place


@dataclass(frozen=True, slots=True)
class Terrain:
    """The height field: above 0 is land, below is water; 1 is a few hundred meters from the shore."""

    seed: int
    level: float
    """Subtracted from the natural field, which is about standard normal."""
    quays: tuple[Frame, ...] = ()
    """Middles of the quays of harbors, u along them and v toward the sea."""

    def grid(self, y: Array, x: Array) -> Array:
        """Return the height on a grid of axes in meters, float32 [len(y), len(x)]."""
        return self._shaped(self._natural.grid(y, x), x[None, :], y[:, None])

    def at(self, y: Array, x: Array) -> Array:
        """Return the height at positions of one shape, float32."""
        return self._shaped(self._natural.at(y, x), x, y)

    @property
    def _natural(self) -> Noise:
        return Noise(self.seed, 1300.0, 7, 0.47)

    def _shaped(self, natural: Array, x: Array, y: Array) -> Array:
        height = natural - np.float32(self.level)
        for quay in self.quays:
            if (np.hypot(x - quay.x, y - quay.y) < RADIUS_M).any():
                # A plane that crosses 0 at the quay, faded out around the harbor.
                u, v = quay.to_local(x, y)
                beside, ahead = np.abs(u) - HALF_QUAY_M, np.maximum(-APRON_M - v, v - REACH_M)
                weight = smoothstep(1.0 - np.hypot(beside.clip(0.0), ahead.clip(0.0)) / FADE_M)
                height = np.asarray(height + (np.clip(v * (-1 / 40.0), -1.3, 0.4) - height) * weight, np.float32)
        return height

    def in_harbor(self, x: Array, y: Array) -> Array:
        """Return which positions are in a harbor or on its ground, or close beside it."""
        inside = np.zeros(x.shape, bool)
        for quay in self.quays:
            u, v = quay.to_local(x, y)
            inside |= (np.abs(u) < HALF_QUAY_M + 20.0) & (v > -APRON_M) & (v < REACH_M)
        return inside


def make_terrain(level: float, size_m: tuple[float, float], harbors: int, rng: np.random.Generator) -> Terrain:
    """Return a terrain with enough water, and with up to `harbors` harbors where the coast has room for them."""
    y, x = (np.arange(0.0, length, COAST_STEP_M) for length in size_m)
    while True:
        terrain = Terrain(int(rng.integers(2**24)) * 64, level)
        land = terrain.grid(y, x) > 0
        if float(land.mean()) < 1.0 - MIN_WATER:
            break
        level += 0.1
    coast = np.argwhere(land[:-1, :-1] != land[1:, 1:])
    y, x = coast[rng.permutation(len(coast))[: harbors * 60]].T * COAST_STEP_M
    east, west, south, north = (terrain.at(y + dy, x + dx) for dx, dy in ((140, 0), (-140, 0), (0, 140), (0, -140)))
    quays: list[Frame] = []
    for place in np.stack([x, y, np.arctan2(east - west, north - south)], axis=1).tolist():  # v down the slope
        quay = Frame(*place)
        apart = all(math.hypot(quay.x - other.x, quay.y - other.y) > 2 * RADIUS_M - 120.0 for other in quays)
        if len(quays) < harbors and apart and _fits(terrain, quay):
            quays.append(quay)
    return Terrain(terrain.seed, level, tuple(quays))


def _fits(terrain: Terrain, quay: Frame) -> bool:
    """Return whether there is mostly land behind the quay, and water before it far enough out."""
    u, v = np.meshgrid(np.linspace(-1.0, 1.0, 7) * HALF_QUAY_M, [-70.0, -120.0, *np.linspace(90.0, REACH_M + 140.0, 5)])
    x, y = quay.to_world(np.stack([u, v], axis=-1).reshape(-1, 2)).T
    land = (terrain.at(y, x) > 0).reshape(u.shape)
    return bool(land[:2].mean() > 0.6 and land[2:].mean() < 0.25)
