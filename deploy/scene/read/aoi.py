"""Areas of interest: a tile is processed if it touches the area, and a detection is kept if its center is inside.

So the result is that of the entire scene, clipped: all tiles that contain the center of a kept object are processed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from deploy.scene.read.georeference import Georeference, centers
from deploy.scene.read.scene import SceneInfo
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.files import read_json
from ifkd.core.tiling import TileGrid

MAX_SEGMENT_DEGREES = 0.01
"""Longer edges are split before they are projected, because a straight line in degrees is curved on a map."""

Ring = tuple[tuple[float, float], ...]


class AreaOfInterest(Schema):
    """Polygons in longitude and latitude (WGS84)."""

    source: str
    """Name of the file that they come from."""
    polygons: tuple[tuple[Ring, ...], ...]
    """The exterior ring of each polygon and the rings of its holes, degrees; all rings are closed."""


@dataclass(frozen=True, slots=True, eq=False)
class AoiMask:
    """An area of interest on one scene."""

    tiles: Array
    """bool [tiles]: tiles that touch the area."""
    area: Any
    """The area as a shapely geometry, pixels (column, row)."""

    def contains(self, boxes: Array) -> Array:
        """Return whether the center of each box [n, 4] is inside the area, bool [n]."""
        return shapely.contains_xy(self.area, centers(boxes))


def read_aoi(path: Path) -> AreaOfInterest:
    """Read the polygons of a GeoJSON file (RFC 7946).

    Raises:
        UsageError: The file is missing or is not GeoJSON, or has no polygons in degrees.
    """
    content = read_json(path, what="area of interest", error_type=UsageError)
    try:
        polygons = _polygons(shapely.from_geojson(json.dumps(_geometry(content))))
    except (TypeError, KeyError, shapely.errors.GEOSException) as error:
        raise UsageError(f"The area of interest {path} is not valid GeoJSON ({error})") from error
    if not len(polygons):
        raise UsageError(f"The area of interest {path} has no polygon", expected="a Polygon or a MultiPolygon")
    for longitude, latitude in shapely.get_coordinates(polygons).tolist():
        if not (-180.0 <= longitude <= 180.0 and -90.0 <= latitude <= 90.0):
            raise UsageError(
                f"The area of interest {path} is not in longitude and latitude",
                got=f"{longitude:g}, {latitude:g}",
                expected="degrees, as in RFC 7946",
                hint="Convert it: ogr2ogr -t_srs EPSG:4326 area_wgs84.geojson area.geojson.",
            )
    rings = tuple(tuple(tuple(map(tuple, ring.coords)) for ring in _rings(polygon)) for polygon in polygons)
    return AreaOfInterest(source=path.name, polygons=rings)


def aoi_mask_of(area: AreaOfInterest | None, scene: SceneInfo, grid: TileGrid) -> AoiMask | None:
    """Return the mask of an area on a scene; None without an area.

    Raises:
        SceneError: The scene has no coordinate system, or does not touch the area.
    """
    if area is None:
        return None
    georeference = scene.georeference
    if georeference is None:
        raise SceneError(
            f"{scene.name} has no coordinate system, so an area of interest cannot be located in it",
            hint="Omit --aoi, or give the scene a coordinate system (gdal_edit.py -a_srs).",
        )
    polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in area.polygons]
    mask = shapely.union_all([_to_pixels(polygon, georeference, scene.size) for polygon in polygons])
    shapely.prepare(mask)
    height, width = scene.size
    tiles = [shapely.box(one.left, one.top, min(one.right, width), min(one.bottom, height)) for one in grid]
    touching = np.asarray(shapely.intersects(mask, tiles))
    if not touching.any():
        outline = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        raise SceneError(
            f"The area of interest {area.source} is outside {scene.name}",
            got=_extent(shapely.get_coordinates(polygons)),
            expected=f"an area that touches {_extent(georeference.to_lonlat(outline))}",
        )
    return AoiMask(touching, mask)


def _geometry(content: Any) -> Any:
    """Return the GeoJSON geometry of any GeoJSON object; features may have none."""
    match content["type"]:
        case "FeatureCollection":
            geometries = [feature["geometry"] for feature in content["features"]]
            return {"type": "GeometryCollection", "geometries": [one for one in geometries if one is not None]}
        case "Feature":
            return content["geometry"] or {"type": "GeometryCollection", "geometries": []}
    return content


def _polygons(geometry: Any) -> list[Any]:
    """Return all polygons of a shapely geometry, in two dimensions."""
    if geometry.geom_type == "Polygon":
        return [shapely.force_2d(geometry)]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in _polygons(part)]


def _rings(polygon: Any) -> list[Any]:
    return [polygon.exterior, *polygon.interiors]


def _to_pixels(polygon: Any, georeference: Georeference, size: tuple[int, int]) -> Any:
    """Return a polygon in pixels of a scene of `size`, without points that have no pixel position."""
    split = [shapely.get_coordinates(shapely.segmentize(ring, MAX_SEGMENT_DEGREES)) for ring in _rings(polygon)]
    pixels = [georeference.from_lonlat(ring, size) for ring in split]
    located = [ring[np.isfinite(ring).all(axis=1)] for ring in pixels]
    rings = [ring for ring in located if len(ring) >= 4]
    return shapely.make_valid(shapely.Polygon(rings[0], rings[1:])) if rings else shapely.Polygon()


def _extent(lonlat: Array) -> str:
    finite = lonlat[np.isfinite(lonlat).all(axis=1)]
    if not len(finite):
        return "nowhere"
    (west, south), (east, north) = finite.min(axis=0), finite.max(axis=0)
    return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"
