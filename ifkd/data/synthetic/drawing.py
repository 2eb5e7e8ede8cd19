"""Drawings of made things: coloured, sunlit polygons in metres, turned into stamps on the pixel grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ifkd.core.detections import Array

SUPERSAMPLING = 4
SHADE = 105
"""Light left in a shadow, of 255."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """A place and a direction: local (u, v) in metres, u ahead and v to the right seen from above."""

    x: float
    """World metres to the right."""
    y: float
    """World metres downwards."""
    angle: float
    """Direction of u, radians from the x axis towards the y axis (clockwise on a picture)."""

    def to_world(self, local: Array) -> Array:
        """Return world (x, y), float64 [n, 2], of local (u, v) [n, 2]."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        u, v = np.asarray(local, np.float64).reshape(-1, 2).T
        return np.stack([self.x + u * cosine - v * sine, self.y + u * sine + v * cosine], axis=1)

    def to_local(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return local u and v of world coordinates, which broadcast."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        right, down = x - self.x, y - self.y
        return right * cosine + down * sine, down * cosine - right * sine


@dataclass(frozen=True, slots=True)
class Sun:
    """Where shadows fall: metres on the ground per metre of height."""

    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class Stamp:
    """A drawing on the pixel grid. The picture below becomes `below * transmission + light`."""

    top: int
    """First row, pixels of the world."""
    left: int
    """First column, pixels of the world."""
    light: Array
    """uint8 [height, width, 3]: colour times coverage."""
    transmission: Array
    """uint8 [height, width]: 255 shows all that lies below, less is cover or shadow."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    polygon: Array
    colour: Colour
    rise_m: float


@dataclass(slots=True, eq=False)
class Sketch:
    """Polygons in the order they are laid on each other, drawn in a local frame."""

    frame: Frame
    parts: list[_Part] = field(default_factory=list)

    def area(self, points: Sequence[tuple[float, float]] | Array, colour: Colour, rise: float = 0.0) -> None:
        """Lay a polygon of local points; `rise` is its height above what lies below, metres."""
        self.parts.append(_Part(self.frame.to_world(np.asarray(points, np.float64)), colour, rise))

    def box(self, along: tuple[float, float], across: tuple[float, float], colour: Colour, rise: float = 0.0) -> None:
        """Lay a rectangle from `along[0]` to `along[1]` and from `across[0]` to `across[1]`."""
        (u0, u1), (v0, v1) = along, across
        self.area([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], colour, rise)

    def disc(self, centre: tuple[float, float], radius: float, colour: Colour, rise: float = 0.0) -> None:
        """Lay a disc."""
        turns = np.arange(20) * (2 * math.pi / 20)
        points = np.stack([centre[0] + radius * np.cos(turns), centre[1] + radius * np.sin(turns)], axis=1)
        self.area(points, colour, rise)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour, rise: float = 0.0
    ) -> None:
        """Lay a straight bar."""
        u, v = end[0] - start[0], end[1] - start[1]
        length = math.hypot(u, v)
        if length == 0:
            return
        du, dv = -v / length * width / 2, u / length * width / 2
        corners = [
            (start[0] + du, start[1] + dv),
            (end[0] + du, end[1] + dv),
            (end[0] - du, end[1] - dv),
            (start[0] - du, start[1] - dv),
        ]
        self.area(corners, colour, rise)

    def bounds(self, sun: Sun) -> tuple[float, float, float, float]:
        """Return x1, y1, x2, y2 in world metres of all parts and their shadows."""
        low, high = np.full(2, np.inf), np.full(2, -np.inf)
        for part in self.parts:
            shift = np.array([sun.x, sun.y]) * part.rise_m
            low = np.minimum(low, part.polygon.min(axis=0) + np.minimum(shift, 0))
            high = np.maximum(high, part.polygon.max(axis=0) + np.maximum(shift, 0))
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def stamp(self, sun: Sun, gsd_m: float) -> Stamp:
        """Return the drawing on the world's pixel grid."""
        x1, y1, x2, y2 = self.bounds(sun)
        left, top = math.floor(x1 / gsd_m) - 1, math.floor(y1 / gsd_m) - 1
        width, height = math.ceil(x2 / gsd_m) + 1 - left, math.ceil(y2 / gsd_m) + 1 - top
        size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        colours, cover, light = Image.new("RGB", size), Image.new("L", size), Image.new("L", size, 255)
        on_colours, on_cover, on_light = (ImageDraw.Draw(image) for image in (colours, cover, light))
        factor = SUPERSAMPLING / gsd_m
        origin = np.array([left * gsd_m, top * gsd_m])
        shadow = np.array([sun.x, sun.y])
        for part in self.parts:
            # Pillow draws from pixel centres, hence the half sub-pixel.
            points = _pairs((part.polygon - origin) * factor - 0.5)
            if part.rise_m > 0:
                cast = _pairs((part.polygon + shadow * part.rise_m - origin) * factor - 0.5)
                for start in range(len(points)):
                    end = (start + 1) % len(points)
                    on_light.polygon([points[start], points[end], cast[end], cast[start]], fill=SHADE)
                on_light.polygon(cast, fill=SHADE)
            on_colours.polygon(points, fill=part.colour)
            on_cover.polygon(points, fill=255)
            on_light.polygon(points, fill=255)
        lit = ImageChops.multiply(colours, Image.merge("RGB", (light, light, light)))
        through = ImageChops.multiply(light, ImageChops.invert(cover))
        return Stamp(
            top,
            left,
            np.asarray(lit.reduce(SUPERSAMPLING)),
            np.asarray(through.reduce(SUPERSAMPLING)),
        )


def varied(rng: np.random.Generator, colour: Colour, spread: float = 8.0) -> Colour:
    """Return a colour near `colour`: brighter or darker as a whole, a little different in tint."""
    shifted = np.array(colour) + rng.normal(0.0, spread) + rng.normal(0.0, spread / 3, 3)
    red, green, blue = (int(value) for value in shifted.clip(6, 250))
    return red, green, blue


def shaded(colour: Colour, factor: float) -> Colour:
    """Return a colour multiplied by `factor`."""
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def _pairs(points: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]
