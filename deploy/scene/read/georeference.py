"""Georeferences: convert pixels of a scene to its coordinate system and to longitude and latitude, and back."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio._err import CPLE_BaseError, CPLE_NotSupportedError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import GCPTransformer
from rasterio.warp import transform as warp

from ifkd.core import oriented_boxes
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError

WGS84 = CRS.from_epsg(4326)
WGS84_SEMI_MAJOR_M, WGS84_FLATTENING = 6_378_137.0, 1 / 298.257223563
EARTH_RADIUS_M = 6_371_008.8
MAX_LONGITUDE = 540.0
"""Longitudes of a grid may continue beyond the antimeridian, or count from 0 to 360."""
MIN_GSD_M = 1e-3
"""Smaller pixels are those of degrees in a coordinate system of meters."""
SAMPLES = 17
"""Points along each axis of a scene where its places are looked up."""
RELATIVE_PRECISION = 1e-13
"""Smallest pixel relative to the coordinates that float64 resolves to a hundredth."""


@dataclass(frozen=True, slots=True, eq=False)
class Georeference:
    """Georeference of a scene: a coordinate system with a transform or ground control points."""

    crs: CRS
    transform: Affine | None
    """From (column, row) to map coordinates; may rotate and shear; has an inverse. None with ground control points."""
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
        """Return longitude (-180 to 180) and latitude in WGS84, degrees, float64 [n, 2]; NaN for no place on Earth.

        Raises:
            SceneError: The coordinate system cannot be converted to WGS84.
        """
        return _on_earth(self._warped(self.to_map(points), self.crs, WGS84))

    def from_lonlat(self, points: Array, size: tuple[int, int]) -> Array:
        """Return pixel positions, float64 [n, 2] (column, row), of longitudes and latitudes [n, 2] in degrees.

        Where a place has several map coordinates, as beyond the antimeridian, the position is that nearest to the
        center of a scene of `size` (height, width). It is NaN for a place outside the projection.

        Raises:
            SceneError: The coordinate system cannot be converted from WGS84.
        """
        mapped = self._warped(_on_earth(points.astype(np.float64).reshape(-1, 2)), WGS84, self.crs)
        half_wh = np.array([size[1], size[0]]) / 2
        found = [self._to_pixels(mapped + turn) for turn in self._turns(size)]
        distances = np.array([np.abs(pixels / half_wh - 1.0).max(axis=1) for pixels in found])
        nearest = np.where(np.isfinite(distances), distances, np.inf).argmin(axis=0)
        return np.stack(found)[nearest, np.arange(len(mapped))]

    def from_wgs84(self, lonlat: Array) -> Array:
        """Return map coordinates, float64 [n, 2], of longitudes and latitudes [n, 2]; NaN outside the projection.

        Raises:
            SceneError: The coordinate system cannot be converted from WGS84.
        """
        return self._warped(lonlat, WGS84, self.crs)

    def lonlat_problem(self, size: tuple[int, int]) -> str | None:
        """Return the reason why a scene of `size` (height, width) has no WGS84 coordinates, or None."""
        points = _samples(size, inset=1.0)  # grids of pixel centers go half a pixel beyond the pole
        try:
            located = np.isfinite(self.to_lonlat(points)).all(axis=1)
        except SceneError as error:
            return error.problem
        if self.crs.is_geographic and not located.all():
            x, y = self.to_map(points[~located][:1])[0]
            return f"Coordinates such as {x:.10g}, {y:.10g} are no degrees, as {self.name!r} has"
        if not located.any():
            return "No part of the scene has a longitude and latitude"
        side_m = self._pixel_m(size)
        if side_m is not None and side_m < MIN_GSD_M:
            return f"A pixel would be {side_m:.1g} m wide, so the coordinates are not those of {self.name!r}"
        return None

    def gsd_m(self, size: tuple[int, int]) -> float | None:
        """Return the ground sample distance at the center of a scene of `size`, meters; None if it is unknown.

        Its square is the area of a pixel, whose sides may be of different lengths and not at right angles.
        """
        side_m = self._pixel_m(size)
        return None if side_m is None or side_m < MIN_GSD_M else side_m

    def _pixel_m(self, size: tuple[int, int]) -> float | None:
        neighbors = np.array([[0, 0], [1, 0], [0, 1]])
        try:
            center, right, below = geocentric(self.to_lonlat(neighbors + np.array([size[1] / 2, size[0] / 2])))
        except SceneError:
            return None
        side = math.sqrt(float(np.linalg.norm(np.cross(right - center, below - center))))
        return side if math.isfinite(side) and side > 0 else None

    def sides_m(self, boxes: Array) -> Array:
        """Return the ground lengths of boxes [n, 4] along columns and rows, meters, float64 [n, 2]; NaN off the Earth.

        Those of oriented boxes [n, 5] are along their long and their short side. They are geodesic lengths from the
        middle of a side to the middle of the opposite side.
        """
        chords = np.linalg.norm(self._axes(boxes), axis=2)
        chords[np.isnan(chords).any(axis=1)] = np.nan
        return arc_m(chords)

    def headings_deg(self, boxes: Array) -> Array:
        """Return the directions of the longer axis of boxes [n, 4 or 5] on the ground, float64 [n]; NaN off the Earth.

        They are degrees clockwise from north, from 0 to below 180: an axis has no bow.
        """
        axes = self._axes(boxes)
        longer = np.linalg.norm(axes, axis=2).argmax(axis=1)
        axis = axes[np.arange(len(boxes)), longer]
        longitude, latitude = np.radians(self.to_lonlat(centers(boxes)).T)
        zero, sine, cosine = np.zeros_like(longitude), np.sin(longitude), np.cos(longitude)
        east = np.stack([-sine, cosine, zero], axis=1)
        north = np.stack([-np.sin(latitude) * cosine, -np.sin(latitude) * sine, np.cos(latitude)], axis=1)
        return np.asarray(np.degrees(np.arctan2((axis * east).sum(axis=1), (axis * north).sum(axis=1))) % 180.0)

    def _axes(self, boxes: Array) -> Array:
        """Return vectors in space between the middles of opposite sides, meters, float64 [n, 2, 3]."""
        middles = edge_points(boxes, 2)[:, 1::2]  # of the left, bottom, right and top side
        points = geocentric(self.to_lonlat(middles.reshape(-1, 2))).reshape(-1, 4, 3)
        return points[:, 2:] - points[:, :2]

    def _turns(self, size: tuple[int, int]) -> Array:
        """Return the differences [n, 2] between the map coordinates in the scene and those that WGS84 is converted to.

        They are 0, and turns around the Earth beyond the antimeridian.
        """
        mapped = self.to_map(_samples(size))
        again = self._warped(_on_earth(self._warped(mapped, self.crs, WGS84)), WGS84, self.crs)
        differences = np.where(np.isfinite(again), mapped - again, 0.0)
        turn = float(np.abs(differences[:, 0]).max())
        if turn <= 1e-6 * np.abs(mapped).max():
            return np.zeros((1, 2))
        same = np.abs(differences[:, 1]) <= 1e-6 * turn  # not outside the projection
        turns = np.unique(np.append(0.0, np.rint(differences[same, 0] / turn))) * turn
        return np.stack([turns, np.zeros(len(turns))], axis=1)

    def _to_pixels(self, mapped: Array) -> Array:
        if self.transform is not None:
            return _transformed(mapped, ~self.transform)
        if not len(mapped):
            return mapped
        with GCPTransformer(list(self.gcps), tps=True) as transformer:
            rows, columns = transformer.rowcol(*mapped.T.tolist(), op=float)
        return np.column_stack([columns, rows])

    def _warped(self, points: Array, source: CRS, target: CRS) -> Array:
        if not len(points) or source == target:
            return points
        if not (self.crs.is_geographic or self.crs.is_projected):
            raise SceneError(f"The coordinate system {self.name!r} cannot be converted to WGS84")
        usable = (np.abs(points) <= 1e9).all(axis=1)  # larger numbers keep GDAL subtracting turns without end
        found = np.full(points.shape, np.nan)
        if usable.any():
            found[usable] = _converted(points[usable], source, target, self.name)
        return found


def georeference_of(dataset: Any) -> Georeference | str:
    """Return the georeference of an open rasterio dataset, or the reason why it has none, as the rest of a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            transform, crs = dataset.transform, dataset.crs
            (gcps, gcps_crs), rpcs, geolocation = dataset.gcps, dataset.rpcs, dataset.tags(ns="GEOLOCATION")
        except (RasterioError, CPLE_BaseError, ValueError) as error:
            return f"has a damaged georeference ({error})"
    if crs and not transform.is_identity:
        if _is_invertible(transform):
            return Georeference(crs, transform)
        return f"has a transform without an inverse ({', '.join(f'{value:g}' for value in tuple(transform)[:6])})"
    if gcps:
        no_system = "has ground control points without a coordinate system"
        return _georeference_by_gcps(gcps, gcps_crs) if gcps_crs else no_system
    reasons = {
        "has only rational polynomial coefficients (orthorectify it with gdalwarp -rpc)": rpcs,
        "has only geolocation arrays (resample it with gdalwarp -geoloc)": geolocation,
        "has a coordinate system without a transform": crs,
    }
    return next((reason for reason, found in reasons.items() if found), "has no coordinate system")


def corners(boxes: Array) -> Array:
    """Return the corners of boxes [n, 4] or [n, 5], float64 [n, 4, 2], counterclockwise if y points up."""
    if boxes.shape[1] == 5:
        return oriented_boxes.corners(boxes).astype(np.float64)[:, [0, 3, 2, 1]]
    return boxes.astype(np.float64)[:, [[0, 1], [0, 3], [2, 3], [2, 1]]]


def geocentric(lonlat: Array) -> Array:
    """Return x, y and z in meters, float64 [n, 3], of longitudes and latitudes [n, 2] on the ellipsoid of WGS84."""
    longitude, latitude = np.radians(lonlat.T)
    squared = WGS84_FLATTENING * (2.0 - WGS84_FLATTENING)  # eccentricity
    normal = WGS84_SEMI_MAJOR_M / np.sqrt(1.0 - squared * np.sin(latitude) ** 2)
    across = normal * np.cos(latitude)
    x, y = across * np.cos(longitude), across * np.sin(longitude)
    return np.stack([x, y, normal * (1.0 - squared) * np.sin(latitude)], axis=1)


def arc_m(chords_m: Array) -> Array:
    """Return the lengths on the Earth between points at these distances in space, meters."""
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin((chords_m / (2 * EARTH_RADIUS_M)).clip(max=1.0)))


def edge_points(boxes: Array, count: int) -> Array:
    """Return `count` points of each edge of boxes [n, 4], from its first corner, float64 [n, 4 x count, 2]."""
    start = corners(boxes)[:, :, None]
    step = (np.roll(start, -1, axis=1) - start) / count
    return (start + step * np.arange(count)[:, None]).reshape(len(boxes), 4 * count, 2)


def centers(boxes: Array) -> Array:
    """Return the centers of boxes [n, 4] or [n, 5], float64 [n, 2]."""
    if boxes.shape[1] == 5:
        return boxes[:, :2].astype(np.float64)
    return (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2.0


def map_rings(georeference: Georeference, boxes: Array) -> Array:
    """Return boxes as closed counterclockwise rings in the scene's coordinate system, float64 [n, 5, 2]."""
    rings = georeference.to_map(corners(boxes).reshape(-1, 2)).reshape(-1, 4, 2)
    with np.errstate(invalid="ignore"):  # control points may give no finite place
        clockwise = signed_area(rings) < 0
    rings[clockwise] = rings[clockwise, ::-1]
    return np.concatenate([rings, rings[:, :1]], axis=1)


def map_polygons(georeference: Georeference, boxes: Array) -> Array:
    """Return boxes as polygons in the scene's coordinate system; None where control points give no finite place."""
    rings = map_rings(georeference, boxes)
    located = np.isfinite(rings)
    polygons = shapely.polygons(np.where(located, rings, 0.0))
    polygons[~located.all(axis=(1, 2))] = None
    return np.asarray(polygons)


def signed_area(rings: Array) -> Array:
    """Return the areas of rings [n, points, 2], positive if they are counterclockwise."""
    centered = rings - rings.mean(axis=1, keepdims=True)  # map coordinates are much larger than an object
    x, y = centered[..., 0], centered[..., 1]
    return (x * np.roll(y, -1, axis=-1) - np.roll(x, -1, axis=-1) * y).sum(axis=-1) / 2.0


def _georeference_by_gcps(gcps: Sequence[GroundControlPoint], crs: CRS) -> Georeference | str:
    """Return the georeference by ground control points, or the reason why they give none."""
    points = np.unique(np.array([[gcp.col, gcp.row, gcp.x, gcp.y] for gcp in gcps], np.float64), axis=0)
    if not np.isfinite(points).all():
        return "has ground control points that are not finite"
    half_turn = math.pi * (1.0 if crs.is_geographic else EARTH_RADIUS_M)
    if np.ptp(points[:, 2]) > half_turn / crs.units_factor[1]:
        lonlat = _on_earth(_converted(points[:, 2:], crs, WGS84, crs.to_string()))  # on both sides of 180 degrees
        if not np.isfinite(lonlat).all():
            return "has ground control points that are not on Earth"
        crs = _local_crs(lonlat)
        points[:, 2:] = _converted(lonlat, WGS84, crs, crs.to_string())
    if len(np.unique(points[:, :2], axis=0)) < len(points):
        return "has ground control points with several places for one pixel"
    if len(points) < 3 or not (_is_plane(points[:, :2]) and _is_plane(points[:, 2:])):
        return f"has {len(points)} different ground control points, where three that are not in a line are the minimum"
    return Georeference(crs, None, tuple(GroundControlPoint(row, col, x, y) for col, row, x, y in points.tolist()))


def _local_crs(lonlat: Array) -> CRS:
    """Return the azimuthal projection around the mean place of longitudes and latitudes [n, 2]."""
    longitude, latitude = np.radians(lonlat).T
    across = np.cos(latitude)
    x, y, z = (across * np.cos(longitude)).mean(), (across * np.sin(longitude)).mean(), np.sin(latitude).mean()
    middle = np.degrees([math.atan2(y, x), math.atan2(z, math.hypot(x, y))])
    return CRS.from_proj4(f"+proj=laea +lon_0={middle[0]:.4f} +lat_0={middle[1]:.4f} +datum=WGS84 +units=m")


def _is_plane(points: Array) -> bool:
    """Return whether points [n, 2] are not all in a line."""
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(spread[-1] > 1e-6 * spread[0])


def _is_invertible(transform: Affine) -> bool:
    """Return whether the pixels of a transform are finite, and large enough for float64 to distinguish them."""
    a, b, c, d, e, f = tuple(transform)[:6]
    if not np.isfinite([a, b, c, d, e, f]).all():
        return False
    longest, shortest = np.linalg.svd(np.array([[a, b], [d, e]]), compute_uv=False)
    return bool(shortest > max(1e-9 * longest, RELATIVE_PRECISION * max(abs(c), abs(f))))


def _samples(size: tuple[int, int], inset: float = 0.0) -> Array:
    """Return the points of a regular grid over a scene, float64 [n, 2], without `inset` pixels at its border."""
    y, x = (np.linspace(min(inset, side / 2), side - min(inset, side / 2), SAMPLES) for side in size)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _converted(points: Array, source: CRS, target: CRS, name: str) -> Array:
    """Return points [n, 2] in another coordinate system; NaN outside the projection."""
    try:
        found = np.column_stack(warp(source, target, *points.T.tolist()))
    except CPLE_NotSupportedError as error:
        raise SceneError(f"The coordinate system {name!r} cannot be converted to WGS84") from error
    except CPLE_BaseError:  # a point is outside; after twenty of them in a process, GDAL returns infinity instead
        if len(points) == 1:
            return np.full((1, 2), np.nan)
        halves = points[: len(points) // 2], points[len(points) // 2 :]
        return np.concatenate([_converted(half, source, target, name) for half in halves])
    return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan)


def _on_earth(lonlat: Array) -> Array:
    """Return longitudes from -180 to 180 and latitudes, float64 [n, 2]; NaN where they are no place on Earth."""
    with np.errstate(invalid="ignore"):
        longitude, latitude = lonlat.T
        located = (np.abs(longitude) <= MAX_LONGITUDE) & (np.abs(latitude) <= 90.0 + 1e-9)
        longitude = np.where(np.abs(longitude) > 180.0, (longitude + 180.0) % 360.0 - 180.0, longitude)
    return np.where(located[:, None], np.stack([longitude, latitude.clip(-90.0, 90.0)], axis=1), np.nan)


def _transformed(points: Array, transform: Affine) -> Array:
    x, y = points.T
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
