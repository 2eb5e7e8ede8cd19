"""An area of interest: which tiles of a scene are looked at, and which objects are kept.

A tile is looked at when it shares any part with the area; an object is kept when its center lies inside. So an object
at the area's edge is still seen by every tile that holds its center, and the answer is that of the whole scene, cut.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deploy.scene.read.georeference import Georeference
from deploy.scene.read.scene import SceneInfo
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import TileGrid, Window

PIECE_DEGREES = 0.01
"""Edges are cut into pieces no longer than this before they are projected, as a straight line bends on a map."""
MOST_PIECES = 512

Position = tuple[float, float]
Ring = tuple[Position, ...]


class AreaOfInterest(Schema):
    """Polygons in longitude and latitude (WGS84)."""

    source: str
    """The file they came from."""
    polygons: tuple[tuple[Ring, ...], ...]
    """Each an outer ring and the rings of its holes, degrees; the last position of a ring equals the first."""


@dataclass(frozen=True, slots=True, eq=False)
class AoiMask:
    """An area on one scene."""

    wanted: Array
    """bool [tiles]: which share a part with it."""
    edges: tuple[Array, ...]
    """By polygon, the edges of its rings: float64 [n, 2, 2], pixels (column, row) of both ends."""

    def holds(self, boxes: Array) -> Array:
        """Return which boxes [n, 4] have their center inside, bool [n]."""
        centers = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2.0
        inside = np.zeros(len(boxes), bool)
        for edges in self.edges:
            inside |= _inside(centers, edges)
        return inside


def read_aoi(path: Path) -> AreaOfInterest:
    """Read the polygons of a GeoJSON file (RFC 7946).

    Raises:
        UsageError: It is absent, no GeoJSON, or holds no polygon in degrees.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The area of interest {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"The area of interest {path} is no GeoJSON ({error})") from error
    try:
        polygons = tuple(tuple(_ring(ring) for ring in polygon) for polygon in _polygons(content))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UsageError(f"The area of interest {path} is no GeoJSON with polygons ({error})") from error
    if not polygons:
        raise UsageError(f"The area of interest {path} holds no polygon", expected="a Polygon or a MultiPolygon")
    for longitude, latitude in (position for polygon in polygons for ring in polygon for position in ring):
        if not (-180.0 <= longitude <= 180.0 and -90.0 <= latitude <= 90.0):
            raise UsageError(
                f"The area of interest {path} is not in longitude and latitude",
                got=f"{longitude:g}, {latitude:g}",
                expected="degrees, as RFC 7946 asks",
                hint="Convert it: ogr2ogr -t_srs EPSG:4326 area_wgs84.geojson area.geojson.",
            )
    return AreaOfInterest(source=path.name, polygons=polygons)


def aoi_mask_of(area: AreaOfInterest | None, scene: SceneInfo, grid: TileGrid) -> AoiMask | None:
    """Return which tiles and places of a scene an area reaches, or None without an area.

    Raises:
        SceneError: The scene has no place on the map, or lies elsewhere.
    """
    if area is None:
        return None
    georeference = scene.georeference
    if georeference is None:
        raise SceneError(
            f"{scene.name} has no coordinate system, so an area of interest cannot be found in it",
            hint="Leave --aoi out, or give the scene a coordinate system (gdal_edit.py -a_srs).",
        )
    edges = tuple(_edges(polygon, georeference, scene.size) for polygon in area.polygons)
    wanted = np.array([any(_touches(some, window, scene.size) for some in edges) for window in grid])
    if not wanted.any():
        raise SceneError(
            f"The area of interest {area.source} lies outside {scene.name}",
            got=_extent(np.array([position for polygon in area.polygons for position in polygon[0]])),
            expected=f"something within {_extent(_outline(georeference, scene.size))}",
        )
    return AoiMask(wanted, edges)


def _polygons(content: Any) -> Iterator[Any]:
    match content.get("type"):
        case "FeatureCollection":
            for feature in content["features"]:
                yield from _polygons(feature)
        case "Feature":
            if content["geometry"] is not None:
                yield from _polygons(content["geometry"])
        case "GeometryCollection":
            for geometry in content["geometries"]:
                yield from _polygons(geometry)
        case "Polygon":
            yield content["coordinates"]
        case "MultiPolygon":
            yield from content["coordinates"]


def _ring(positions: Any) -> Ring:
    ring = tuple((float(position[0]), float(position[1])) for position in positions)
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError("a ring needs at least four positions, the last like the first")
    return ring


def _edges(polygon: tuple[Ring, ...], georeference: Georeference, size: tuple[int, int]) -> Array:
    parts = []
    for ring in polygon:
        pixels = georeference.from_lonlat(_densified(np.array(ring)), size)
        parts.append(np.stack([pixels[:-1], pixels[1:]], axis=1))
    edges = np.concatenate(parts)
    return edges[np.isfinite(edges).all(axis=(1, 2))]


def _densified(ring: Array) -> Array:
    """Return a closed ring [n, 2] with positions added along its longer edges."""
    points = [ring[:1]]
    for start, end in pairwise(ring):
        count = min(MOST_PIECES, max(1, math.ceil(float(np.abs(end - start).max()) / PIECE_DEGREES)))
        share = np.arange(1, count + 1)[:, None] / count
        points.append(start + (end - start) * share)
    return np.concatenate(points)


def _touches(edges: Array, window: Window, size: tuple[int, int]) -> bool:
    """Return whether a polygon shares a part with the scene's share of a window."""
    low = np.array([window.left, window.top], np.float64)
    high = np.array([min(window.right, size[1]), min(window.bottom, size[0])], np.float64)
    near = (edges.max(axis=1) >= low).all(axis=1) & (edges.min(axis=1) <= high).all(axis=1)
    if near.any() and _crosses(edges[near], low, high).any():
        return True
    return bool(_inside(((low + high) / 2.0)[None], edges)[0])


def _crosses(edges: Array, low: Array, high: Array) -> Array:
    """Return which edges have a part within a rectangle, bool [n] (after Liang and Barsky)."""
    start, step = edges[:, 0], edges[:, 1] - edges[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (low - start) / step, (high - start) / step
    still = step == 0.0  # parallel to a side: within its band for all of its length, or never
    within = (start >= low) & (start <= high)
    enter = np.where(still, np.where(within, -np.inf, np.inf), np.minimum(one, other))
    leave = np.where(still, np.where(within, np.inf, -np.inf), np.maximum(one, other))
    shared: Array = np.maximum(enter.max(axis=1), 0.0) <= np.minimum(leave.min(axis=1), 1.0)
    return shared


def _inside(points: Array, edges: Array) -> Array:
    """Return which points [n, 2] a ray from leaves a polygon an odd number of times, bool [n]."""
    inside = np.zeros(len(points), bool)
    x, y = points.T
    for (x1, y1), (x2, y2) in edges:
        if y1 != y2:
            straddles = (y1 > y) != (y2 > y)
            inside ^= straddles & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def _outline(georeference: Georeference, size: tuple[int, int]) -> Array:
    height, width = size
    return georeference.to_lonlat(np.array([[0, 0], [width, 0], [width, height], [0, height]]))


def _extent(lonlat: Array) -> str:
    known = lonlat[np.isfinite(lonlat).all(axis=1)]
    if not len(known):
        return "nowhere"
    west, south = known.min(axis=0)
    east, north = known.max(axis=0)
    return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"
