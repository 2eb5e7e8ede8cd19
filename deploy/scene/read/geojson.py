"""GeoJSON (RFC 7946): geometries of rings in longitude and latitude, their bounding box, and checks of files."""

import json
import math
from typing import Any

import numpy as np
import shapely
import shapely.affinity

from deploy.scene.read.georeference import Georeference, corners, edge_points, signed_area
from ifkd.core.detections import Array
from ifkd.core.errors import IfkdError

DECIMALS = 7
"""Decimals of degrees: about a centimeter."""
GLOBE = shapely.box(-180.0, -90.0, 180.0, 90.0)
SWAPPED = "Longitude comes first in GeoJSON; here latitude seems to."
COARSE_DEGREES = 1.0
"""Longitude between corners of a box from which its edges are curved in degrees: near a pole."""
CURVE_POINTS = 16


def geojson_geometry(lonlat: Array) -> dict[str, Any] | None:
    """Return the GeoJSON geometry of a ring of longitudes and latitudes, float64 [n, 2].

    A ring across the antimeridian becomes several polygons, and a ring around a pole is extended to the pole; the rings
    are closed and counterclockwise. A ring with a corner that is not finite gives None, an unlocated feature.
    """
    if not np.isfinite(lonlat).all():
        return None
    if np.ptp(lonlat[:, 0]) <= 180.0 and np.abs(lonlat[:, 0]).max() <= 180.0:
        return {"type": "Polygon", "coordinates": [_closed(lonlat)]}
    parts = [part for part in shapely.get_parts(on_globe(shapely.Polygon(lonlat))) if part.area > 0]
    rings = [_closed(shapely.get_coordinates(part.exterior)[:-1]) for part in parts]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def box_geometries(georeference: Georeference, boxes: Array) -> list[dict[str, Any] | None]:
    """Return the GeoJSON geometries of boxes [n, 4], pixels of a scene."""
    lonlat = georeference.to_lonlat(corners(boxes).reshape(-1, 2)).reshape(-1, 4, 2)
    rings = list(lonlat)
    steps = np.abs(lonlat[:, :, 0] - np.roll(lonlat[:, :, 0], 1, axis=1))
    coarse = np.flatnonzero((np.minimum(steps, 360.0 - steps) > COARSE_DEGREES).any(axis=1))
    fine = georeference.to_lonlat(edge_points(boxes[coarse], CURVE_POINTS).reshape(-1, 2))
    for index, ring in zip(coarse.tolist(), fine.reshape(len(coarse), 4 * CURVE_POINTS, 2), strict=True):
        rings[index] = ring
    return [geojson_geometry(ring) for ring in rings]


def extent_of(lonlat: Array) -> str:
    """Return the extent of longitudes and latitudes [n, 2] in words."""
    finite = lonlat[np.isfinite(lonlat).all(axis=1)]
    if not len(finite):
        return "nowhere"
    (west, south), (east, north) = finite.min(axis=0), finite.max(axis=0)
    return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"


def on_globe(polygon: Any) -> Any:
    """Return a polygon in degrees as a shapely geometry between -180 and 180 degrees of longitude.

    An edge goes the shorter way round the Earth, unless it goes all the way; a ring around a pole includes the pole.
    """
    exterior, *holes = (_area_within(shapely.get_coordinates(ring)[:-1]) for ring in rings_of(polygon))
    return shapely.difference(exterior, shapely.union_all(holes)) if holes else exterior


def rings_of(polygon: Any) -> list[Any]:
    """Return the exterior ring of a shapely polygon and the rings of its holes."""
    return [polygon.exterior, *polygon.interiors]


def require_lonlat(content: Any, lonlat: Array, *, what: str, error: type[IfkdError]) -> None:
    """Refuse a GeoJSON file, by its content and coordinates [n, 2], that is not in longitude and latitude.

    Raises:
        IfkdError: The coordinates are not degrees, or a member `crs` names another coordinate system.
    """
    invalid = lonlat[~(np.abs(lonlat) <= [360.0, 90.0]).all(axis=1)]
    crs = json.dumps(content.get("crs")) if isinstance(content, dict) else "null"
    if len(invalid) or not (crs == "null" or "CRS84" in crs or ":4326" in crs):
        raise error(
            f"{what} is not in longitude and latitude",
            got=f"{invalid[0, 0]:g}, {invalid[0, 1]:g}" if len(invalid) else crs,
            expected="degrees, as in RFC 7946",
            hint="Convert it: ogr2ogr -t_srs EPSG:4326 wgs84.geojson FILE.",
        )


class GeoJsonExtent:
    """RFC 7946 bounding box of geometries that are added one after the other."""

    def __init__(self) -> None:
        self._spans = np.zeros((0, 2))
        self._south, self._north = math.inf, -math.inf

    def add(self, geometries: list[dict[str, Any]]) -> None:
        """Add geometries."""
        rings = [ring for geometry in geometries for ring in _outer_rings(geometry)]
        if not rings:
            return
        self._south = min(self._south, *(point[1] for ring in rings for point in ring))
        self._north = max(self._north, *(point[1] for ring in rings for point in ring))
        spans = [(min(p[0] for p in ring), max(p[0] for p in ring)) for ring in rings]
        self._spans = _union(np.concatenate([self._spans, np.array(spans)]))

    def bbox(self) -> list[float] | None:
        """Return [west, south, east, north], where west > east across the antimeridian; None without geometries."""
        if not len(self._spans):
            return None
        starts, ends = self._spans.T.tolist()
        gaps = [starts[0] + 360.0 - ends[-1], *(self._spans[1:, 0] - self._spans[:-1, 1])]
        widest = int(np.argmax(gaps))  # a gap between two spans, if the box crosses 180 degrees
        return [starts[widest], self._south, ends[widest - 1], self._north]


def _union(spans: Array) -> Array:
    """Return the union of intervals [n, 2], sorted."""
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    end = np.maximum.accumulate(spans[:, 1])
    first = np.append(True, spans[1:, 0] > end[:-1])
    last = np.append(first[1:], True)
    return np.stack([spans[first, 0], end[last]], axis=1)


def _outer_rings(geometry: dict[str, Any]) -> list[Any]:
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    return [polygon[0] for polygon in polygons]


def _closed(ring: Array) -> list[list[float]]:
    if signed_area(ring[None])[0] < 0:
        ring = ring[::-1]
    points: list[list[float]] = np.round(ring, DECIMALS).tolist()
    return [*points, points[0]]


def _area_within(ring: Array) -> Any:
    """Return the area within a ring [n, 2], between -180 and 180 degrees of longitude."""
    ring = _with_pole_edges(ring)
    steps = np.diff(np.append(ring[:, 0], ring[0, 0]))
    steps = np.where(np.abs(steps) == 360.0, steps, steps - 360.0 * np.rint(steps / 360.0))
    longitude = ring[0, 0] + np.append(0.0, np.cumsum(steps)[:-1])
    ring = np.stack([longitude - 360.0 * np.rint(longitude.mean() / 360.0), ring[:, 1]], axis=1)
    if abs(steps.sum()) > 180.0:  # around a pole: three turns, of which one is used
        pole = math.copysign(90.0, ring[:, 1].mean())
        turns = [ring + np.array([turn * steps.sum(), 0.0]) for turn in (-1, 0, 1, 2)]
        ends = [[turns[-1][0, 0], pole], [turns[0][0, 0], pole]]
        outline = np.concatenate([*turns[:3], turns[3][:1], ends])
        return shapely.intersection(shapely.make_valid(shapely.Polygon(outline)), GLOBE)
    shape = shapely.make_valid(shapely.Polygon(ring))
    shifted = [shapely.affinity.translate(shape, turn) for turn in (-360.0, 0.0, 360.0)]
    return shapely.union_all(shapely.intersection(shifted, GLOBE))


def _with_pole_edges(ring: Array) -> Array:
    """Return a ring in which a corner at a pole has the longitude of either neighbor; its own has no meaning."""
    at_pole = np.abs(ring[:, 1]) >= 90.0
    corner = at_pole & ~np.roll(at_pole, 1) & ~np.roll(at_pole, -1)
    points = []
    for before, point, after, is_corner in zip(np.roll(ring, 1, 0), ring, np.roll(ring, -1, 0), corner, strict=True):
        points += [[before[0], point[1]], [after[0], point[1]]] if is_corner else [point]
    return np.array(points)
