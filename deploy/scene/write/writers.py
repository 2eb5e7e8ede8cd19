"""Write the detections of a scene as GeoJSON, GeoPackage, COCO results and CSV."""

import csv
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import shapely

from deploy.scene.read.georeference import GeoJsonExtent, corners, geojson_geometry, map_rings
from deploy.scene.read.scene import SceneInfo
from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import DETECTION_FILES
from ifkd.core.detections import Array
from ifkd.core.errors import OutputError, SceneError
from ifkd.core.files import atomic_path

CHUNK = 2_000
"""Objects that are written at a time, which bounds the memory."""
LAYER = "detections"
FIXED_DATE = "2000-01-01T00:00:00.000Z"
"""Creation date in a GeoPackage, so that the same detections give the same bytes."""
_GDAL_OPTIONS = threading.Lock()


def choose_formats(requested: Sequence[str] | None, scene: SceneInfo) -> tuple[tuple[str, ...], str | None]:
    """Return the formats to write for a scene, and a message about unsupported formats, or None.

    Args:
        requested: Formats to write; None for all that the scene supports.
        scene: The scene.

    Raises:
        SceneError: The scene does not support a requested format.
    """
    unsupported = _unsupported(scene)
    if requested is not None:
        for name in requested:
            if name in unsupported:
                raise SceneError(
                    f"{scene.name} cannot be written as {name}: {unsupported[name]}",
                    hint="Use --format coco csv, which are in pixels, or give the scene a coordinate system "
                    "(gdal_edit.py -a_srs).",
                )
        return tuple(name for name in DETECTION_FILES if name in requested), None
    formats = tuple(name for name in DETECTION_FILES if name not in unsupported)
    reasons = sorted(set(unsupported.values()))
    omitted = " and ".join(name for name in DETECTION_FILES if name in unsupported)
    return formats, f"No {omitted}: {'; '.join(reasons)}." if unsupported else None


def write_results(result: SceneResult, folder: Path, formats: Sequence[str], *, image_id: int = 1) -> list[str]:
    """Write the detections in each format into `folder`, and return the file names."""
    writers: dict[str, Callable[[Path], None]] = {
        "geojson": lambda path: write_geojson(result, path),
        "gpkg": lambda path: write_geopackage(result, path),
        "coco": lambda path: write_coco(result, path, image_id=image_id),
        "csv": lambda path: write_csv(result, path),
    }
    for name in formats:
        writers[name](folder / DETECTION_FILES[name])
    return [DETECTION_FILES[name] for name in formats]


def write_geojson(result: SceneResult, path: Path) -> None:
    """Write RFC 7946 GeoJSON: WGS84, closed counterclockwise rings, 7 decimals; one feature per line."""
    extent = GeoJsonExtent()
    for chunk in _chunks(result):
        extent.add([geometry for geometry in _geometries(chunk) if geometry])
    bbox = extent.bbox()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection"' + (f', "bbox": {json.dumps(bbox)}' if bbox else ""))
        stream.write(', "features": [')
        row = 0
        for chunk in _chunks(result):
            properties = chunk.properties()
            for index, geometry in enumerate(_geometries(chunk)):
                feature = {
                    "type": "Feature",
                    "id": row,
                    "geometry": geometry,
                    "properties": {name: values[index] for name, values in properties.items()},
                }
                stream.write((",\n" if row else "\n") + json.dumps(feature, ensure_ascii=False))
                row += 1
        stream.write("\n]}\n")


def write_geopackage(result: SceneResult, path: Path) -> None:
    """Write a GeoPackage in the scene's coordinate system; the same detections give the same bytes."""
    georeference = result.scene.georeference
    assert georeference is not None
    dtypes = {"class_id": np.int64, "score": np.float64}
    with atomic_path(path) as temporary, _fixed_date():
        temporary.unlink()  # GDAL creates the file itself
        for number, chunk in enumerate(_chunks(result)):
            properties = {
                name: np.array(values, dtype=dtypes.get(name, object)) for name, values in chunk.properties().items()
            }
            try:
                pyogrio.raw.write(
                    temporary,
                    geometry=shapely.to_wkb(
                        shapely.polygons(map_rings(georeference, chunk.detections.boxes)), byte_order=1
                    ),
                    field_data=list(properties.values()),
                    fields=list(properties),
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=georeference.crs.to_wkt(),
                    append=number > 0,
                )
            except (pyogrio.errors.DataSourceError, RuntimeError) as error:
                raise OutputError(
                    f"Cannot write {path} ({error})",
                    hint="Choose another place, free disk space, or change the permissions.",
                ) from error


def write_coco(result: SceneResult, path: Path, *, image_id: int = 1) -> None:
    """Write COCO results, one object per line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        start = "["
        for chunk in _chunks(result):
            for row in chunk.to_coco(image_id):
                stream.write(f"{start}\n{json.dumps(row, allow_nan=False)}")
                start = ","
        stream.write("[]\n" if start == "[" else "\n]\n")


def write_csv(result: SceneResult, path: Path) -> None:
    """Write one line per object: class, score, box in pixels, tile, and longitude and latitude of the center."""
    georeference = result.scene.georeference
    with_lonlat = georeference is not None and georeference.lonlat_problem(result.scene.size) is None
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        for number, chunk in enumerate(_chunks(result)):
            columns = _columns(chunk, with_lonlat=with_lonlat)
            if number == 0:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _columns(chunk: SceneResult, *, with_lonlat: bool) -> dict[str, list[Any]]:
    properties = chunk.properties()
    columns: dict[str, list[Any]] = {name: properties[name] for name in ("class_id", "class_name", "score")}
    for name, values in zip(("x1_px", "y1_px", "x2_px", "y2_px"), chunk.detections.boxes.T, strict=True):
        columns[name] = [round(float(value), 3) for value in values]
    columns["tile"] = properties["tile"]
    georeference = chunk.scene.georeference
    if with_lonlat and georeference is not None:
        boxes = chunk.detections.boxes.astype(np.float64)
        centers = georeference.to_lonlat((boxes[:, :2] + boxes[:, 2:]) / 2.0)
        columns["longitude"] = [f"{value:.7f}" for value in centers[:, 0]]
        columns["latitude"] = [f"{value:.7f}" for value in centers[:, 1]]
    return columns


def _chunks(result: SceneResult) -> Iterator[SceneResult]:
    """Yield the result in chunks; without detections, one empty chunk."""
    for start in range(0, max(1, len(result.detections)), CHUNK):
        yield result.part(start, start + CHUNK)


def _geometries(chunk: SceneResult) -> list[dict[str, Any] | None]:
    return [geojson_geometry(ring) for ring in _lonlat_corners(chunk)]


def _unsupported(scene: SceneInfo) -> dict[str, str]:
    """Return the formats that a scene does not support, each with the reason."""
    if scene.georeference is None:
        reason = f"{scene.name} has no coordinate system, so its objects have no map coordinates"
        return {"geojson": reason, "gpkg": reason}
    problem = scene.georeference.lonlat_problem(scene.size)
    if problem is None:
        return {}
    return {"geojson": problem[0].lower() + problem[1:]}


def _lonlat_corners(result: SceneResult) -> Array:
    georeference = result.scene.georeference
    assert georeference is not None
    return georeference.to_lonlat(corners(result.detections.boxes).reshape(-1, 2)).reshape(-1, 4, 2)


@contextmanager
def _fixed_date() -> Iterator[None]:
    with _GDAL_OPTIONS:
        before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": FIXED_DATE})
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
