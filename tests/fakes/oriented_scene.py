"""Scenes with ships at any angle, and a fake engine that detects them with oriented boxes."""

from dataclasses import replace

import numpy as np
import pyproj
import shapely
from affine import Affine
from PIL import Image, ImageDraw
from scipy import ndimage

from fakes.fake_scene import SEA, SHADES, CountingEngine, write_tif
from ifkd.core.detections import Detections
from ifkd.core.oriented_boxes import envelopes, from_corners

GEOID = pyproj.Geod(ellps="WGS84")
HARBOR_SIZE = (230, 260)
SHIPS = [(60, 60, 30.0), (78, 78, 30.0), (170, 60, 100.0), (70, 170, 0.0), (180, 165, 135.0)]
"""Column, row and heading; the first two are moored side by side."""
LENGTH_M, WIDTH_M = 70.0, 16.0
SYSTEMS = {
    "EPSG:32633": Affine(1, 0, 500_300, 0, -1, 4_000_900),
    "EPSG:3857": Affine.translation(1.6e6, 4.3e6) @ Affine.rotation(20) @ Affine.scale(1.2, -1.2),
    "EPSG:4326": Affine(1e-5 / np.cos(np.radians(36)), 0, 15, 0, -1e-5, 36),
}
MIN_AREA = 20
"""Smaller bright parts are not detected."""


class OrientedEngine(CountingEngine):
    """A fake engine that finds the smallest oriented box around each bright part of a tile."""

    def __init__(self, **options):
        super().__init__(find=bright_parts, **options)
        self.info = replace(self.info, oriented=True)


def bright_parts(tile):
    """Return the bright parts of a tile [3, h, w] as detections; larger ones score higher."""
    found, scores, labels = [], [], []
    for label, (low, high) in enumerate([(140, 200), (200, 256)]):
        marked, count = ndimage.label(((tile >= low) & (tile < high)).all(axis=0), np.ones((3, 3)))
        for part in range(1, count + 1):
            y, x = np.nonzero(marked == part)
            if len(x) < MIN_AREA:
                continue
            points = np.concatenate([np.stack([x + i, y + j], axis=1) for i in (0, 1) for j in (0, 1)])
            around = shapely.get_coordinates(shapely.oriented_envelope(shapely.MultiPoint(points)))
            found.append(from_corners(around[None, :4])[0])
            scores.append(0.5 + 0.4 * len(x) / (len(x) + 200))
            labels.append(label)
    oriented = np.array(found, np.float32).reshape(-1, 5)
    return Detections(envelopes(oriented), np.array(scores, np.float32), np.array(labels, np.int64), oriented)


def painted(size, polygons, labels):
    """Return uint8 [height, width, 3]: sea with polygons, each float [n, 2] in pixels."""
    fine = 4
    picture = Image.new("L", (size[1] * fine, size[0] * fine), SEA)
    draw = ImageDraw.Draw(picture)
    for polygon, label in zip(polygons, labels, strict=True):
        draw.polygon([tuple(point) for point in (polygon * fine - 0.5).tolist()], fill=SHADES[label])
    middle = np.array(picture)[fine // 2 :: fine, fine // 2 :: fine]
    return np.repeat(middle[:, :, None], 3, axis=2)


def ship_outline(place, heading_deg, length_m, width_m):
    """Return the corners [4, 2] of a ship in longitude and latitude, of a heading clockwise from north."""
    corners = []
    for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        x, y, _ = GEOID.fwd(*place, heading_deg, along * length_m / 2)
        x, y, _ = GEOID.fwd(x, y, heading_deg + 90, across * width_m / 2)
        corners.append((x, y))
    return np.array(corners)


def harbor(path, system):
    """Write a scene with ships of known headings, and return their outlines in its coordinate system."""
    transform = SYSTEMS[system]
    to_lonlat = pyproj.Transformer.from_crs(system, "EPSG:4326", always_xy=True).transform
    to_map = pyproj.Transformer.from_crs("EPSG:4326", system, always_xy=True).transform
    outlines = []
    for column, row, heading in SHIPS:
        lonlat = ship_outline(to_lonlat(*(transform @ (column, row))), heading, LENGTH_M, WIDTH_M)
        outlines.append(np.column_stack(to_map(*lonlat.T)))
    pixels = [np.column_stack(~transform @ tuple(outline.T)) for outline in outlines]
    write_tif(path, painted(HARBOR_SIZE, pixels, [0] * len(SHIPS)), crs=system, transform=transform)
    return outlines
