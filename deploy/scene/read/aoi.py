"""Areas of interest: a detection is kept if its center is inside; tiles that touch it and their neighbors are searched.

So the result is that of the entire scene, clipped: the pieces of an object that is longer than the overlap of tiles,
and has its center inside, are found, too, unless it is much longer than a tile.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from deploy.scene.read.geojson import GLOBE, SWAPPED, extent_of, on_globe, require_lonlat, rings_of
from deploy.scene.read.georeference import Georeference, centers, edge_points
from deploy.scene.read.scene import SceneInfo
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.files import read_json
from ifkd.core.tiling import TileGrid, Window

POINTS_PER_EDGE = 8
"""Points of each edge of a tile, which is straight in pixels and curved in degrees."""

Ring = tuple[tuple[float, float], ...]


class AreaOfInterest(Schema):
    """Polygons in longitude and latitude (WGS84)."""

    source: str
    """Name of the file that they come from."""
    polygons: tuple[tuple[Ring, ...], ...]
    """The exterior ring of each polygon and the rings of its holes, degrees; all rings are closed.

    No ring crosses the antimeridian.
    """


@dataclass(frozen=True, slots=True, eq=False)
class AoiMask:
    """An area of interest on one scene."""

    tiles: Array
    """bool [tiles]: tiles that touch the area, and their neighbors."""
    window: Window
    """Part of the scene with the tiles that touch the area."""
    area: Any
    """The area as a shapely geometry, degrees."""
    georeference: Georeference

    def contains(self, boxes: Array) -> Array:
        """Return whether the center of each box [n, 4] is inside the area, bool [n]."""
        return shapely.contains_xy(self.area, self.georeference.to_lonlat(centers(boxes)))


def read_aoi(path: Path) -> AreaOfInterest:
    """Read the polygons of a GeoJSON file (RFC 7946).

    Raises:
        UsageError: The file is missing or is not GeoJSON, or has no polygons in degrees.
    """
    hint = f"It must be GeoJSON in UTF-8. Convert other formats: ogr2ogr -t_srs EPSG:4326 area.geojson {path}"
    content = read_json(path, what="area of interest", error_type=UsageError, hint=hint if path.exists() else None)
    try:
        polygons = _polygons(shapely.from_geojson(json.dumps(_geometry(content))))
        coordinates = shapely.get_coordinates(polygons)
        require_lonlat(content, coordinates, what=f"The area of interest {path}", error=UsageError)
        parts = [part for polygon in polygons for part in _polygons(on_globe(polygon))]
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.GEOSException) as error:
        raise UsageError(f"The area of interest {path} is not valid GeoJSON ({error})") from error
    if not parts:
        raise UsageError(f"The area of interest {path} has no polygon", expected="a Polygon or a MultiPolygon")
    rings = tuple(tuple(tuple(map(tuple, ring.coords)) for ring in rings_of(part)) for part in parts)
    return AreaOfInterest(source=path.name, polygons=rings)


def aoi_mask_of(area: AreaOfInterest | None, scene: SceneInfo, grid: TileGrid) -> AoiMask | None:
    """Return the mask of an area on a scene; None without an area.

    Raises:
        SceneError: The scene has no coordinate system, or does not touch the area.
    """
    if area is None:
        return None
    georeference, problem = scene.georeference, scene.lonlat_problem
    if georeference is None or problem is not None:
        raise SceneError(
            f"{problem}, so an area of interest cannot be located in it",
            hint="Omit --aoi, or give the scene a coordinate system (gdal_edit.py -a_srs).",
        )
    mask = shapely.union_all([shapely.Polygon(rings[0], rings[1:]) for rings in area.polygons])
    shapely.prepare(mask)
    outlines = _outlines(georeference, scene.size, grid)
    touching = np.asarray(shapely.intersects(mask, outlines))
    if not touching.any():
        swapped = shapely.transform(mask, lambda points: points[:, ::-1])
        raise SceneError(
            f"The area of interest {area.source} is outside {scene.name}",
            got=extent_of(shapely.get_coordinates(mask)),
            expected=f"an area that touches {extent_of(shapely.get_coordinates(outlines))}",
            hint=SWAPPED if shapely.intersects(swapped, outlines).any() else None,
        )
    used = [one for one, is_used in zip(grid, touching.tolist(), strict=True) if is_used]
    top, left = min(one.top for one in used), min(one.left for one in used)
    bottom, right = max(one.bottom for one in used), max(one.right for one in used)
    window = Window(top, left, min(bottom, scene.size[0]) - top, min(right, scene.size[1]) - left)
    return AoiMask(_with_neighbors(touching, grid), window, mask, georeference)


def _with_neighbors(tiles: Array, grid: TileGrid) -> Array:
    """Return the tiles bool [n], and the eight around each."""
    padded = np.pad(tiles.reshape(len(grid.tops), len(grid.lefts)), 1)
    around: Array = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).any(axis=(2, 3)).reshape(-1)
    return around


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
        return [] if geometry.is_empty else [shapely.force_2d(geometry)]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in _polygons(part)]


def _outlines(georeference: Georeference, size: tuple[int, int], grid: TileGrid) -> Array:
    """Return the tiles as shapely geometries in degrees; that of a tile partly off the Earth is the globe."""
    height, width = size
    boxes = np.array([[one.left, one.top, min(one.right, width), min(one.bottom, height)] for one in grid])
    rings = georeference.to_lonlat(edge_points(boxes, POINTS_PER_EDGE).reshape(-1, 2)).reshape(len(boxes), -1, 2)
    located = np.asarray(np.isfinite(rings).all(axis=2))
    center = np.isfinite(georeference.to_lonlat(centers(boxes))).all(axis=1)
    outlines = np.where(located.any(axis=1) | center, GLOBE, shapely.Polygon())
    plain = located.all(axis=1) & (np.ptp(rings[:, :, 0], axis=1) <= 180.0)
    outlines[plain] = shapely.polygons(rings[plain])
    for index in np.flatnonzero(located.all(axis=1) & ~plain):
        outlines[index] = on_globe(shapely.Polygon(rings[index]))
    return outlines
