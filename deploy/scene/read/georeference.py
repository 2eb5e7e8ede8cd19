"""Georeferences: convert pixels of a scene to its coordinate system and to longitude and latitude, and back."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import GCPTransformer
from rasterio.warp import transform as warp

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError

WGS84 = CRS.from_epsg(4326)
EARTH_RADIUS_M = 6_371_008.8
DECIMALS = 7
"""Decimals of degrees in GeoJSON: about a centimeter."""


@dataclass(frozen=True, slots=True, eq=False)
class Georeference:
    """Georeference of a scene: a coordinate system with a transform or ground control points."""

    crs: CRS
    transform: Affine | None
    """From (column, row) to map coordinates; may rotate and shear. None with ground control points."""
    gcps: tuple[GroundControlPoint, ...] = ()
    """Ground control points, interpolated by a thin plate spline."""

    @property
    def name(self) -> str:
        """Human-readable name of the coordinate system."""
        return self.crs.to_wkt().split('"')[1]

    def to_map(self, points: Array) -> Array:
        """Return map coordinates, float64 [n, 2] (x, y), of pixel positions [n, 2] (column, row)."""
        points = points.astype(np.float64).reshape(-1, 2)
        if self.transform is not None:
            return _transformed(points, self.transform)
        if not len(points):
            return points
        columns, rows = points.T.tolist()
        with GCPTransformer(list(self.gcps), tps=True) as transformer:
            return np.column_stack(transformer.xy(rows, columns, offset="ul"))

    def to_lonlat(self, points: Array) -> Array:
        """Return longitude and latitude in WGS84, degrees, float64 [n, 2]; not finite outside the projection.

        Raises:
            SceneError: The coordinate system cannot be converted to WGS84.
        """
        return self._warped(self.to_map(points), self.crs, WGS84)

    def from_lonlat(self, points: Array, size: tuple[int, int]) -> Array:
        """Return pixel positions, float64 [n, 2] (column, row), of longitudes and latitudes [n, 2] in degrees.

        Near the antimeridian, longitudes are shifted by 360 degrees to the ones nearest to the center of a scene of
        `size` (height, width).

        Raises:
            SceneError: The coordinate system cannot be converted from WGS84.
        """
        mapped = self._warped(points.astype(np.float64).reshape(-1, 2), WGS84, self.crs)
        if self.crs.is_geographic:
            center = self.to_map(np.array([[size[1] / 2, size[0] / 2]]))[0, 0]
            mapped = np.stack([mapped[:, 0] + 360.0 * np.rint((center - mapped[:, 0]) / 360.0), mapped[:, 1]], axis=1)
        if self.transform is not None:
            return _transformed(mapped, ~self.transform)
        if not len(mapped):
            return mapped
        with GCPTransformer(list(self.gcps), tps=True) as transformer:
            rows, columns = transformer.rowcol(*mapped.T.tolist(), op=float)
        return np.column_stack([columns, rows])

    def lonlat_problem(self, size: tuple[int, int]) -> str | None:
        """Return the reason why a scene of `size` (height, width) has no WGS84 coordinates, or None."""
        height, width = size
        points = np.array([[0, 0], [width, 0], [width, height], [0, height], [width / 2, height / 2]])
        try:
            known = np.isfinite(self.to_lonlat(points)).all(axis=1).any()
        except SceneError as error:
            return error.problem
        return None if known else "No corner of the scene has a longitude and latitude"

    def gsd_m(self, size: tuple[int, int]) -> float | None:
        """Return the ground sample distance at the center of a scene of `size`, meters; None if it is unknown."""
        neighbors = np.array([[0, 0], [1, 0], [0, 1]])
        try:
            center, right, below = self.to_lonlat(neighbors + np.array([size[1] / 2, size[0] / 2]))
        except SceneError:
            return None
        mean = math.sqrt(_distance_m(center, right) * _distance_m(center, below))
        return mean if math.isfinite(mean) and mean > 0 else None

    def _warped(self, points: Array, source: CRS, target: CRS) -> Array:
        if not len(points) or source == target:
            return points
        try:
            x, y = warp(source, target, *points.T.tolist())
        except Exception as error:  # rasterio raises GDAL's errors, which have no public base class
            raise SceneError(f"The coordinate system {self.name!r} cannot be converted to WGS84") from error
        return np.column_stack([x, y])


def georeference_of(dataset: Any) -> Georeference | None:
    """Return the georeference of an open rasterio dataset, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        transform, crs = dataset.transform, dataset.crs
        gcps, gcps_crs = dataset.gcps
    if crs and not transform.is_identity:
        return Georeference(crs, transform)
    if gcps_crs and len(gcps) >= 3:
        return Georeference(gcps_crs, None, tuple(gcps))
    return None


def corners(boxes: Array) -> Array:
    """Return the corners of boxes [n, 4], float64 [n, 4, 2], counterclockwise if y points up."""
    return boxes.astype(np.float64)[:, [[0, 1], [0, 3], [2, 3], [2, 1]]]


def centers(boxes: Array) -> Array:
    """Return the centers of boxes [n, 4], float64 [n, 2]."""
    return (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2.0


def map_rings(georeference: Georeference, boxes: Array) -> Array:
    """Return boxes as closed counterclockwise rings in the scene's coordinate system, float64 [n, 5, 2]."""
    rings = georeference.to_map(corners(boxes).reshape(-1, 2)).reshape(-1, 4, 2)
    clockwise = _signed_area(rings) < 0
    rings[clockwise] = rings[clockwise, ::-1]
    return np.concatenate([rings, rings[:, :1]], axis=1)


def geojson_geometry(lonlat: Array) -> dict[str, Any] | None:
    """Return the GeoJSON geometry (RFC 7946) of a convex ring of longitudes and latitudes, float64 [n, 2].

    A ring across the antimeridian becomes two polygons, and a ring around a pole is extended to the pole; the rings are
    closed and counterclockwise. A ring with a corner that is not finite gives None, an unlocated feature.
    """
    if not np.isfinite(lonlat).all():
        return None
    steps = np.diff(np.append(lonlat[:, 0], lonlat[0, 0]))
    steps = (steps + 180.0) % 360.0 - 180.0  # the shorter direction
    if abs(steps.sum()) > 180.0:
        return _polygon(_around_pole(lonlat))
    unrolled = lonlat.copy()
    unrolled[:, 0] = lonlat[0, 0] + np.concatenate([[0.0], np.cumsum(steps[:-1])])
    unrolled[:, 0] -= 360.0 * math.floor((unrolled[:, 0].min() + 180.0) / 360.0)
    if unrolled[:, 0].max() <= 180.0:
        return _polygon(unrolled)
    west, east = _clip_at_180(unrolled, keep_west=True), _clip_at_180(unrolled, keep_west=False)
    east[:, 0] -= 360.0
    return {"type": "MultiPolygon", "coordinates": [[_closed(west)], [_closed(east)]]}


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


def _polygon(ring: Array) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [_closed(ring)]}


def _closed(ring: Array) -> list[list[float]]:
    if _signed_area(ring[None])[0] < 0:
        ring = ring[::-1]
    points: list[list[float]] = np.round(ring, DECIMALS).tolist()
    return [*points, points[0]]


def _clip_at_180(ring: Array, *, keep_west: bool) -> Array:
    """Return the part of a convex ring west (or east) of longitude 180, in the order of the ring."""
    kept = []
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if start[0] <= 180.0 if keep_west else start[0] >= 180.0:
            kept.append(start)
        if (start[0] - 180.0) * (end[0] - 180.0) < 0:
            fraction = (180.0 - start[0]) / (end[0] - start[0])
            kept.append(np.array([180.0, start[1] + fraction * (end[1] - start[1])]))
    return np.array(kept)


def _around_pole(ring: Array) -> Array:
    """Return the ring of the area between a convex ring around a pole and the pole, from -180 to 180 degrees."""
    pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
    longitude = (ring[:, 0] + 180.0) % 360.0 - 180.0
    order = np.argsort(longitude)
    longitude, latitude = longitude[order], ring[order, 1]
    gap = longitude[0] + 360.0 - longitude[-1]
    at_180 = latitude[-1] + (latitude[0] - latitude[-1]) * ((180.0 - longitude[-1]) / gap if gap else 0.0)
    inner = np.stack([longitude, latitude], axis=1)
    return np.array([[-180.0, at_180], *inner, [180.0, at_180], [180.0, pole], [-180.0, pole]])


def _transformed(points: Array, transform: Affine) -> Array:
    x, y = points.T
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _signed_area(rings: Array) -> Array:
    centered = rings - rings.mean(axis=1, keepdims=True)  # map coordinates are much larger than an object
    x, y = centered[..., 0], centered[..., 1]
    return (x * np.roll(y, -1, axis=-1) - np.roll(x, -1, axis=-1) * y).sum(axis=-1) / 2.0


def _distance_m(start: Array, end: Array) -> float:
    lon1, lat1, lon2, lat2 = (math.radians(float(value)) for value in (*start, *end))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_M * math.asin(math.sqrt(half)) if math.isfinite(half) else math.nan
