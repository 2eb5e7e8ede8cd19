"""Drawings of objects: colored, sunlit polygons in meters, rendered as stamps on the pixel grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.synthetic.geometry import Bounds, Frame, PixelGrid, Point, bounds_of, overlap, window_around

SUPERSAMPLING = 4
SHADE = 105  # Light left in a shadow, of 255

Color = tuple[int, int, int]  # Red, green, blue, 0 to 255
CONTAINERS: tuple[Color, ...] = (
    (148, 56, 46), (52, 84, 134), (62, 112, 92), (176, 176, 172), (190, 124, 52), (82, 122, 162), (64, 70, 78),
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Sketch:
    """Polygons of a local frame, in the order in which they cover each other."""

    frame: Frame
    polygons: list[tuple[Array, Color, float, float]] = field(default_factory=list)
    """Local points [n, 2], color, height above what is below in meters, and opacity."""

    def area(self, points: Sequence[Point] | Array, color: Color, rise: float = 0.0, *, opacity: float = 1.0) -> None:
        """Add a polygon of local points; `rise` is its height above what is below, meters."""
        self.polygons.append((np.asarray(points, np.float64), color, rise, opacity))

    def box(self, along: Point, across: Point, color: Color, rise: float = 0.0, *, opacity: float = 1.0) -> None:
        """Add a rectangle from `along[0]` to `along[1]` and from `across[0]` to `across[1]`."""
        (u0, u1), (v0, v1) = along, across
        self.area([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], color, rise, opacity=opacity)

    def bounds(self, shadow: Point) -> Bounds:
        """Return the bounds of all polygons and their shadows, world meters."""
        return bounds_of(np.concatenate(self._corners(shadow)))

    def stamp(self, shadow: Point, gsd_m: float) -> tuple[Window, Array]:
        """Return the drawing's pixels of the world, and uint8 [height, width, 4]: color, and the light from below."""
        corners = [points / gsd_m for points in self._corners(shadow)]
        window = window_around(bounds_of(np.concatenate(corners)), margin=1)
        size = (window.width * SUPERSAMPLING, window.height * SUPERSAMPLING)
        image, light = Image.new("RGBA", size), Image.new("L", size, 255)
        on_image, on_light = ImageDraw.Draw(image), ImageDraw.Draw(light)
        flat = all(rise == 0.0 for _, _, rise, _ in self.polygons)  # casts no shadow
        # Pillow draws from pixel centers, hence the half sub-pixel.
        scaled = ((points - (window.left, window.top)) * SUPERSAMPLING - 0.5 for points in corners)
        tops, feet = (list(map(tuple, points.tolist())) for points in scaled)
        end = 0
        for points, color, rise, opacity in self.polygons:
            start, end = end, end + len(points)
            top, foot = tops[start:end], feet[start:end]
            if rise > 0:
                for index in range(len(top)):
                    on_light.polygon([top[index - 1], top[index], foot[index], foot[index - 1]], fill=SHADE)
                on_light.polygon(foot, fill=SHADE)
            on_image.polygon(top, fill=(*shaded(color, opacity), round(255 * opacity)))
            if not flat:
                on_light.polygon(top, fill=255)
        *bands, cover = image.split()
        bands.append(ImageChops.invert(cover))
        if not flat:
            bands = [ImageChops.multiply(band, light) for band in bands]
        return window, np.dstack([np.asarray(band.reduce(SUPERSAMPLING)) for band in bands])

    def _corners(self, shadow: Point) -> tuple[Array, Array]:
        """Return the corners of all polygons and of their shadows, each [n, 2], world meters."""
        outlines, _, heights, _ = zip(*self.polygons, strict=True)
        corners, rises = self.frame.to_world(np.concatenate(outlines)), np.repeat(heights, list(map(len, outlines)))
        return corners, corners + rises[:, None] * np.array(shadow)


class StampSet:
    """Drawings that cover each other in their order."""

    def __init__(self, sketches: Sequence[Sketch], shadow: Point, gsd_m: float) -> None:
        self._sketches, self._shadow, self._gsd_m = sketches, shadow, gsd_m
        self._bounds = np.array([sketch.bounds(shadow) for sketch in sketches]).reshape(-1, 4)

    def add_to(self, color: Array, grid: PixelGrid, light: Array) -> None:
        """Add the drawings to an image [rows, columns, 3] in place, under `light` [rows, columns, 1]."""
        for index in grid.touching(self._bounds):
            window, pixels = self._sketches[index].stamp(self._shadow, self._gsd_m)
            here, there = overlap(grid.window, window)
            through = pixels[there][..., 3:] * np.float32(1 / 255)
            color[here] = color[here] * through + pixels[there][..., :3] * light[here]


def varied(rng: np.random.Generator, colors: Sequence[Color], deviation: float = 8.0) -> Color:
    """Return a color near one of several: brighter or darker, a little different in tint."""
    chosen = np.array(colors[int(rng.integers(len(colors)))])
    red, green, blue = (chosen + rng.normal(0, deviation) + rng.normal(0, deviation / 3, 3)).clip(6, 250).tolist()
    return int(red), int(green), int(blue)


def shaded(color: Color, factor: float) -> Color:
    """Return a color multiplied by `factor`."""
    red, green, blue = (min(255, round(value * factor)) for value in color)
    return red, green, blue
