"""The white water that ships under way leave behind."""

import math

import numpy as np

from ifkd.core.detections import Array
from ifkd.data.synthetic.noise import Fractal, smoothstep
from ifkd.data.synthetic.sea import Grid
from ifkd.data.synthetic.ships import Ship

FOAM = np.array([208, 218, 218], np.float32)


def wake_bounds(ship: Ship) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of all a wake may touch, world metres."""
    behind, aside = _extent(ship)
    front = ship.length_m * 0.55
    corners = ship.frame.to_world(np.array([(front, -aside), (front, aside), (-behind, aside), (-behind, -aside)]))
    (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
    return float(x1), float(y1), float(x2), float(y2)


def wake_cover(ship: Ship, grid: Grid, seed: int) -> Array:
    """Return how white the wake makes each pixel, float32 [rows, columns], 0 to 1."""
    u, v = ship.frame.to_local(grid.x[None, :], grid.y[:, None])
    behind, aside = _extent(ship)
    inside = (u > -behind) & (np.abs(v) < aside)
    texture = Fractal(seed + 30, 18.0, 3).grid(grid.y, grid.x)
    half_length, half_beam = ship.length_m / 2, ship.beam_m / 2
    astern = -(u + half_length * 0.96)
    fade = np.exp(-np.maximum(astern, 0.0) / (0.36 * behind)) * smoothstep(1.0 - astern / (behind - half_length))
    breadth = half_beam * (0.55 + 0.75 * smoothstep(astern / (1.2 * ship.length_m)))
    churned = np.exp(-((np.abs(v) / breadth) ** 4)) * (astern > 0) * fade
    cover = churned * np.clip(0.55 + 0.30 * texture, 0.0, 1.0)
    # The edges of the churned water stay white longest.
    edges = np.exp(-(((np.abs(v) - breadth) / 2.6) ** 2)) * (astern > 0) * fade
    cover = np.maximum(cover, 0.55 * edges * np.clip(0.6 + 0.4 * texture, 0.0, 1.0))
    back = half_length - u
    arm_fade = np.exp(-np.maximum(back, 0.0) / (0.42 * behind)) * (back > 0)
    for slope, strength, width in ((0.22, 0.55, 2.4), (0.31, 0.22, 4.0)):
        distance = np.abs(v) - slope * back - 1.0
        arms = np.exp(-((distance / (width + 0.02 * back.clip(0))) ** 2)) * arm_fade
        cover = np.maximum(cover, strength * arms * np.clip(0.62 + 0.4 * texture, 0.0, 1.0))
    bow = np.exp(-(((u - half_length * 0.88) / (0.14 * ship.length_m)) ** 2)) * np.exp(
        -((np.maximum(np.abs(v) - 0.5 * half_beam, 0.0) / (0.5 * half_beam + 1.5)) ** 2)
    )
    cover = np.maximum(cover, 0.75 * bow * np.clip(0.75 + 0.3 * texture, 0.0, 1.0))
    result: Array = np.where(inside, cover * (0.35 + 0.6 * ship.speed), 0.0).astype(np.float32)
    return result


def _extent(ship: Ship) -> tuple[float, float]:
    """Return how far behind the middle and to each side a wake reaches, metres."""
    behind = ship.length_m * (1.2 + 2.6 * ship.speed)
    return behind, 0.31 * (behind + ship.length_m / 2) + 16.0 + math.sqrt(ship.beam_m)
