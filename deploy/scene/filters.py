"""Filters of detections by vector files: drop or tag those on excluded areas, tag those near known places or the coast.

A detection is at the center of its box. Filters are applied to the merged detections of a scene, before anything is
written, so they change neither the tiles nor the state of an interrupted run.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely

from deploy.scene.read.geojson import on_globe
from deploy.scene.read.ground_distance import GroundSegments
from deploy.scene.read.scene import SceneInfo
from deploy.scene.read.vector_file import TYPE_IDS, GeometryKind, VectorFile, VectorFileRecord, read_vector_file
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError

DECIMALS = 1
"""Decimals of distances in meters."""
SEAM_DEGREES = 1e-6
"""An edge this close to a pole or the antimeridian is where a file was cut there, and no coast."""


class ExcludeRecord(VectorFileRecord):
    """A file of excluded areas."""

    detections: int
    """Detections inside its areas and outside those of the files before it."""


class NearRecord(VectorFileRecord):
    """A file of known points."""

    within_m: float
    detections: int
    """Detections within this distance of a point."""


class FiltersRecord(Schema):
    """Filters of a run and their effect."""

    detections: int
    """Detections before the filters."""
    excluded: Literal["dropped", "tagged"]
    """What became of detections in excluded areas."""
    exclude: tuple[ExcludeRecord, ...]
    near: NearRecord | None
    coast: VectorFileRecord | None

    def summary(self) -> str:
        """Return the effect in words."""
        parts = [f"{one.detections} {self.excluded} in {one.source}" for one in self.exclude]
        if self.near is not None:
            parts.append(f"{self.near.detections} within {self.near.within_m:g} m of {self.near.source}")
        if self.coast is not None:
            parts.append(f"distances to {self.coast.source}")
        return f"Filters, of {self.detections} detections: {', '.join(parts)}"


@dataclass(frozen=True, slots=True, eq=False)
class FilteredRows:
    """Outcome of filters for `n` detections."""

    keep: Array
    """bool [n]."""
    tags: dict[str, Array]
    """New properties by name, [n]: bool, float64 with NaN for none, or object with None for none."""
    record: FiltersRecord


class ExcludedAreas:
    """Polygons of a file; the border belongs to them."""

    def __init__(self, file: VectorFile) -> None:
        on_edge = _needs_globe(file.geometries) if file.is_geographic else np.zeros(len(file.geometries), bool)
        crossing = ~shapely.is_valid(file.geometries) & ~on_edge  # a ring around a pole crosses itself in the plane
        polygons = list(shapely.make_valid(file.geometries))
        for row in np.flatnonzero(on_edge):
            polygons[row] = on_globe(file.geometries[row])
        self._georeference = file.georeference
        parts = shapely.get_parts(shapely.get_parts(polygons))  # a repaired polygon may be a collection
        self._polygons = parts[shapely.get_type_id(parts) == TYPE_IDS["Polygon"]]
        self._tree = shapely.STRtree(self._polygons)
        self.record = file.record.model_copy(update={"repaired": int(crossing.sum())})

    def contain(self, lonlat: Array) -> Array:
        """Return whether places, longitudes and latitudes [n, 2], are in a polygon, bool [n]; NaN is in none."""
        points = self._georeference.from_wgs84(lonlat)
        located = np.flatnonzero(np.isfinite(points).all(axis=1))
        place, area = self._tree.query(shapely.points(points[located]))
        shapely.prepare(self._polygons[np.unique(area)])
        inside = np.zeros(len(points), bool)
        x, y = points[located[place]].T
        inside[located[place[shapely.intersects_xy(self._polygons[area], x, y)]]] = True
        return inside


@dataclass(frozen=True, slots=True, eq=False)
class KnownPoints:
    """Points of a file, such as platforms and turbines, and the distance in meters that is near to them."""

    segments: GroundSegments
    names: tuple[str, ...]
    within_m: float
    record: VectorFileRecord


@dataclass(frozen=True, slots=True, eq=False)
class Coast:
    """Coastline of a file."""

    segments: GroundSegments
    record: VectorFileRecord


@dataclass(frozen=True, slots=True, eq=False)
class SceneFilters:
    """Filters for all scenes of a run."""

    exclude: tuple[ExcludedAreas, ...] = ()
    tag: bool = False
    """Whether detections in excluded areas are kept and tagged, not dropped."""
    near: KnownPoints | None = None
    coast: Coast | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)  # scenes are filtered in several threads

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on."""
        exclude = {"sha256": [one.record.sha256 for one in self.exclude], "tag": self.tag}
        near = None if self.near is None else {"sha256": self.near.record.sha256, "within_m": self.near.within_m}
        return {"exclude": exclude, "near": near, "coast": None if self.coast is None else self.coast.record.sha256}

    def remarks(self) -> list[str]:
        """Return what was left out of the files or repaired, for the user."""
        files = [*self.exclude, *(one for one in (self.near, self.coast) if one is not None)]
        return [remark for file in files if (remark := file.record.remark())]

    def apply(self, lonlat: Array) -> FilteredRows:
        """Apply the filters to detections with their centers at longitudes and latitudes [n, 2]; NaN is nowhere."""
        with self._lock:
            excluded, exclude = np.zeros(len(lonlat), bool), []
            for areas in self.exclude:
                new = areas.contain(lonlat) & ~excluded
                exclude.append(ExcludeRecord(**areas.record.model_dump(), detections=int(new.sum())))
                excluded |= new
            tags = {"excluded": excluded} if self.exclude and self.tag else {}
            near = None
            if self.near is not None:
                tags |= _near_tags(self.near, lonlat)
                count = int(np.isfinite(tags["near_m"]).sum())
                near = NearRecord(**self.near.record.model_dump(), within_m=self.near.within_m, detections=count)
            if self.coast is not None:
                tags["coast_m"] = self.coast.segments.nearest(lonlat).distance_m.round(DECIMALS)
        record = FiltersRecord(
            detections=len(lonlat),
            excluded="tagged" if self.tag else "dropped",
            exclude=tuple(exclude),
            near=near,
            coast=None if self.coast is None else self.coast.record,
        )
        return FilteredRows(np.ones(len(lonlat), bool) if self.tag else ~excluded, tags, record)


def read_filters(
    *,
    exclude: Sequence[Path] = (),
    tag: bool = False,
    near: Path | None = None,
    within_m: float | None = None,
    coast: Path | None = None,
) -> SceneFilters | None:
    """Read the files of filters, in any vector format and coordinate system; None without any.

    Args:
        exclude: Polygons, such as land.
        tag: Keep and tag detections in these polygons instead of dropping them.
        near: Points of known objects.
        within_m: Distance that is near to them, meters.
        coast: Lines of the coast, or polygons, of which the outlines are used.

    Raises:
        UsageError: A file is invalid, or an option needs another one.
    """
    if tag and not exclude:
        raise UsageError("--tag needs --exclude", hint="Name the areas whose detections are to be tagged.")
    if (near is None) != (within_m is None):
        raise UsageError("--near and --within need each other", hint="Use --near points.geojson --within 200.")
    if within_m is not None and not 0.0 < within_m < np.inf:
        raise UsageError("--within must be a distance in meters", got=within_m)
    if not exclude and near is None and coast is None:
        return None
    areas = [read_vector_file(path, kinds=["Polygon"], what="file of areas") for path in exclude]
    points = lines = None
    if near is not None and within_m is not None:
        file, segments = _read_segments(near, ["Point"], "file of points")
        points = KnownPoints(segments, file.names, within_m, file.record)
    if coast is not None:
        file, segments = _read_segments(coast, ["LineString", "LinearRing", "Polygon"], "coastline")
        lines = Coast(segments, file.record)
    return SceneFilters(tuple(map(ExcludedAreas, areas)), tag, points, lines)


def require_places(filters: SceneFilters | None, scene: SceneInfo) -> None:
    """Refuse a scene whose detections cannot be located for filters.

    Raises:
        SceneError: The scene has no coordinate system that can be converted to longitude and latitude.
    """
    if filters is not None and (problem := scene.lonlat_problem) is not None:
        raise SceneError(
            f"{problem}, so its detections cannot be compared with the files of --exclude, --near and --coast",
            hint="Omit these options, or give the scene a coordinate system (gdal_edit.py -a_srs).",
        )


def _needs_globe(polygons: Array) -> Array:
    """Return which polygons in degrees may cross the antimeridian or contain a pole, bool [n]."""
    coordinates, polygon = shapely.get_coordinates(polygons, return_index=True)
    steps = (np.abs(np.diff(coordinates[:, 0])) > 180.0) & (polygon[1:] == polygon[:-1])
    needed = np.zeros(len(polygons), bool)
    needed[polygon[1:][steps]] = True
    needed[polygon[np.abs(coordinates[:, 0]) > 180.0]] = True
    return needed


def _read_segments(path: Path, kinds: list[GeometryKind], what: str) -> tuple[VectorFile, GroundSegments]:
    """Read points, lines and the rings of polygons as segments; a point is one without length."""
    file = read_vector_file(path, kinds=kinds, what=what)
    if kinds == ["Point"]:
        starts = ends = shapely.get_coordinates(file.geometries)
    else:
        starts, ends = _edges(file)
    try:
        return file, GroundSegments(starts, ends, file.georeference)
    except ValueError as error:
        raise UsageError(f"The {what} {path} has {error}", hint="Correct its coordinate system.") from error


def _edges(file: VectorFile) -> tuple[Array, Array]:
    """Return the edges of lines and polygons; one of more than 180 degrees goes the shorter way round the Earth."""
    is_polygon = shapely.get_type_id(file.geometries) == TYPE_IDS["Polygon"]
    lines = np.concatenate([file.geometries[~is_polygon], shapely.get_rings(file.geometries[is_polygon])])
    coordinates, line = shapely.get_coordinates(lines, return_index=True)
    same = line[1:] == line[:-1]
    starts, ends = coordinates[:-1][same], coordinates[1:][same]
    if not file.is_geographic:
        return starts, ends
    turns = np.rint((ends[:, 0] - starts[:, 0]) / 360.0)
    turns[np.abs(ends[:, 0] - starts[:, 0]) == 360.0] = 0.0
    limits = np.array([180.0, 90.0]) - SEAM_DEGREES
    seam = ((np.abs(starts) >= limits) & (np.abs(ends) >= limits) & (starts * ends > 0.0)).any(axis=1)
    ends = ends - np.stack([360.0 * turns, np.zeros(len(turns))], axis=1)
    return starts[~seam], ends[~seam]


def _near_tags(points: KnownPoints, lonlat: Array) -> dict[str, Array]:
    nearest = points.segments.nearest(lonlat)
    near = nearest.distance_m <= points.within_m  # False for NaN
    names = np.array([*points.names, None], object)[np.where(near, nearest.index, -1)]
    return {"near": names, "near_m": np.where(near, nearest.distance_m, np.nan).round(DECIMALS)}
