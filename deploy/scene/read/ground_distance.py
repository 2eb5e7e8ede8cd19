"""Distances on the WGS84 ellipsoid to the nearest of many points or line segments, in meters.

A distance is that of two points in space, converted to an arc of the Earth: its error is below 0.1 m up to 100 km and
0.002 % up to 1,000 km. The nearest segment is chosen on a plane around the points, with an error of at most 0.2 %
up to 100 km from the places that are searched from.
"""

from dataclasses import dataclass

import numpy as np
import shapely

from deploy.scene.read.georeference import EARTH_RADIUS_M, Georeference, arc_m, geocentric
from ifkd.core.detections import Array

CELL_DEGREES = 5.0
"""Places in a cell of this size share one plane."""
COARSE_M, FINE_M = 100_000.0, 1_000.0
"""Longest pieces of a segment: for the choice of those that are near, and for distances."""
ROUNDING_M = 1.0
METERS_PER_DEGREE = 111_195.0
FARTHEST_M = EARTH_RADIUS_M * np.sqrt(2.0)
"""Chord of a quarter of the Earth's circumference, beyond which there is no distance."""


@dataclass(frozen=True, slots=True, eq=False)
class NearestPlaces:
    """The nearest segment of each place."""

    index: Array
    """int64 [n]: its row; -1 for none."""
    distance_m: Array
    """float64 [n]; NaN for none."""


class GroundSegments:
    """Line segments, straight in a coordinate system, from `starts` to `ends`, [n, 2]; a point starts where it ends.

    Raises:
        ValueError: A segment is not on the Earth.
    """

    def __init__(self, starts: Array, ends: Array, georeference: Georeference) -> None:
        self._georeference = georeference
        self._unit_m = METERS_PER_DEGREE if georeference.crs.is_geographic else georeference.crs.units_factor[1]
        self._starts, self._ends, self._rows = _divided(starts, ends, COARSE_M / self._unit_m)
        start_xyz, end_xyz = self._to_space(self._starts), self._to_space(self._ends)
        self._lengths_m = np.linalg.norm(end_xyz - start_xyz, axis=1)
        if not np.isfinite(self._lengths_m).all():
            x, y = self._starts[~np.isfinite(self._lengths_m)][0]
            raise ValueError(f"coordinates such as {x:g}, {y:g} are no place on Earth")
        self._middles = (start_xyz + end_xyz) / 2.0
        self._middles_squared = (self._middles**2).sum(axis=1)

    def nearest(self, lonlat: Array) -> NearestPlaces:
        """Return the nearest segment of longitudes and latitudes [n, 2]; none for NaN or beyond 10,000 km."""
        index, distance_m = np.full(len(lonlat), -1), np.full(len(lonlat), np.nan)
        located = np.flatnonzero(np.isfinite(lonlat).all(axis=1))
        cells, cell_of = np.unique(np.floor(lonlat[located] / CELL_DEGREES), axis=0, return_inverse=True)
        for cell in range(len(cells)):
            rows = located[cell_of.reshape(-1) == cell]
            index[rows], distance_m[rows] = self._nearest(geocentric(lonlat[rows]))
        return NearestPlaces(index, distance_m)

    def _nearest(self, places: Array) -> tuple[Array, Array]:
        """Return row of and distance to the nearest segment of places [n, 3] that are close to each other."""
        center = places.mean(axis=0)
        radius = np.linalg.norm(places - center, axis=1).max()
        squared = self._middles_squared - 2.0 * self._middles @ center + center @ center
        middles_m = np.sqrt(squared.clip(min=0.0))
        if middles_m.min() > FARTHEST_M:
            return np.full(len(places), -1), np.full(len(places), np.nan)
        # By the triangle inequality, no other segment can be the nearest of a place. A segment is a little curved in
        # space, so that its length is used where half of it is the limit.
        reach = middles_m.min() + 2.0 * radius + self._lengths_m + self._lengths_m[middles_m.argmin()] + ROUNDING_M
        close = np.flatnonzero(middles_m <= reach)
        starts, ends, pieces = _divided(self._starts[close], self._ends[close], FINE_M / self._unit_m)
        a, b = self._to_space(starts), self._to_space(ends)
        lines = shapely.linestrings(np.stack([_on_plane(a, center), _on_plane(b, center)], axis=1))
        chosen = shapely.STRtree(lines).nearest(shapely.points(_on_plane(places, center)))
        return self._rows[close[pieces[chosen]]], arc_m(_distance_to_segment(places, a[chosen], b[chosen]))

    def _to_space(self, points: Array) -> Array:
        return geocentric(self._georeference.to_lonlat(points))


def _divided(starts: Array, ends: Array, longest: float) -> tuple[Array, Array, Array]:
    """Return the pieces of segments, none longer than `longest` in a coordinate, and the segment of each."""
    counts = np.maximum(1, np.ceil(np.abs(ends - starts).max(axis=1, initial=0.0) / longest)).astype(np.int64)
    segment = np.repeat(np.arange(len(starts)), counts)
    number = (np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts))[:, None]
    step = ((ends - starts) / counts[:, None])[segment]
    return starts[segment] + number * step, starts[segment] + (number + 1) * step, segment


def _on_plane(places: Array, center: Array) -> Array:
    """Return places [n, 3] in the azimuthal equidistant projection around a center [3], radians [n, 2]."""
    up, directions = center / np.linalg.norm(center), places / np.linalg.norm(places, axis=1, keepdims=True)
    _, _, basis = np.linalg.svd(up[None])
    plane = directions @ basis[1:].T
    sine = np.linalg.norm(plane, axis=1, keepdims=True)
    angle = np.arctan2(sine, (directions @ up)[:, None])
    return plane * np.divide(angle, sine, out=np.ones_like(sine), where=sine > 0.0)


def _distance_to_segment(places: Array, starts: Array, ends: Array) -> Array:
    """Return the distance in space of each place to the segment of its row, all [n, 3]."""
    along = ends - starts
    length = (along**2).sum(axis=1)
    at = np.divide(((places - starts) * along).sum(axis=1), length, out=np.zeros_like(length), where=length > 0.0)
    return np.asarray(np.linalg.norm(places - starts - at.clip(0.0, 1.0)[:, None] * along, axis=1))
