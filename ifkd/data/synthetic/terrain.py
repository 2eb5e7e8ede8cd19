"""Height of land and depth of water: a natural coast, made straight where harbours stand."""

import math
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.drawing import Frame
from ifkd.data.synthetic.noise import Fractal, smoothstep

FADE_M = 90.0
"""Width of the belt in which a harbour's straight shore turns into the natural one."""
APRON_M = 150.0
"""How far a harbour's ground reaches inland."""


@dataclass(frozen=True, slots=True)
class Basin:
    """A straight shore: the local frame has u along the quay and v towards the sea."""

    frame: Frame
    half_length_m: float
    reach_m: float
    """How far out the water is kept deep."""

    @property
    def radius_m(self) -> float:
        """Distance beyond which the basin changes nothing."""
        return math.hypot(self.half_length_m, max(self.reach_m, APRON_M)) + FADE_M

    def weight(self, u: Array, v: Array) -> Array:
        """Return how much the basin shapes the ground: 1 inside, 0 beyond the fading belt."""
        beside = np.maximum(np.abs(u) - self.half_length_m, 0.0)
        ahead = np.maximum(np.maximum(-APRON_M - v, v - self.reach_m), 0.0)
        return smoothstep(1.0 - np.hypot(beside, ahead) / FADE_M)


@dataclass(frozen=True, slots=True)
class Terrain:
    """The height field: above 0 is land, below is water; 1 is a few hundred metres from the shore."""

    seed: int
    level: float
    """What is subtracted from the natural field."""
    basins: tuple[Basin, ...] = ()

    def grid(self, y: Array, x: Array) -> Array:
        """Return the height on a grid of axes in metres, float32."""
        height = self._natural.grid(y, x) - np.float32(self.level)
        for basin in self.basins_near((float(x[0]), float(y[0]), float(x[-1]), float(y[-1]))):
            u, v = basin.frame.to_local(x[None, :], y[:, None])
            height = _shaped(height, basin, u, v)
        return height

    def at(self, y: Array, x: Array) -> Array:
        """Return the height at places of one shape, float32."""
        height = self._natural.at(y, x) - np.float32(self.level)
        if not self.basins or np.size(x) == 0:
            return height
        for basin in self.basins_near((float(x.min()), float(y.min()), float(x.max()), float(y.max()))):
            u, v = basin.frame.to_local(x, y)
            height = _shaped(height, basin, u, v)
        return height

    def basins_near(self, bounds: tuple[float, float, float, float]) -> list[Basin]:
        """Return the basins that may touch x1, y1, x2, y2 in metres."""
        x1, y1, x2, y2 = bounds
        return [
            basin
            for basin in self.basins
            if x1 - basin.radius_m < basin.frame.x < x2 + basin.radius_m
            and y1 - basin.radius_m < basin.frame.y < y2 + basin.radius_m
        ]

    @property
    def _natural(self) -> Fractal:
        return Fractal(self.seed, 1300.0, 7, 0.47)


def _shaped(height: Array, basin: Basin, u: Array, v: Array) -> Array:
    weight = basin.weight(u, v).astype(np.float32)
    plane = np.clip(v * (-1 / 40.0), -1.3, 0.4).astype(np.float32)
    result: Array = height + (plane - height) * weight
    return result
