"""Write the detections of a scene as GeoJSON, GeoPackage, GeoParquet, COCO results and CSV."""

import csv
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import shapely

from deploy.scene.read.geojson import GeoJsonExtent, box_geometries
from deploy.scene.read.georeference import map_polygons
from deploy.scene.read.scene import SceneInfo
from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import DEFAULT_FORMATS, DETECTION_FILES
from deploy.scene.write.geoparquet import write_geoparquet
from deploy.scene.write.qgis_style import UTC_OFFSET, write_style
from ifkd.core.errors import OutputError, SceneError
from ifkd.core.files import atomic_path

CHUNK = 2_000
"""Objects that are written at a time, which bounds the memory."""
LAYER = "detections"
FIXED_DATE = "2000-01-01T00:00:00.000Z"
"""Creation date in a GeoPackage, so that the same detections give the same bytes."""
_GDAL_OPTIONS = threading.Lock()
Writer = Callable[[SceneResult, Path], None]


def choose_formats(requested: Sequence[str] | None, scene: SceneInfo) -> tuple[tuple[str, ...], str | None]:
    """Return the requested formats, by default all that a scene supports, and a message about the others, or None.

    Raises:
        SceneError: The scene does not support a requested format.
    """
    unsupported = _unsupported(scene)
    for name in requested or ():
        if name in unsupported:
            raise SceneError(
                f"{scene.name} cannot be written as {name}: {unsupported[name]}",
                hint="Use --format coco csv, which are in pixels, or give the scene a coordinate system "
                "(gdal_edit.py -a_srs).",
            )
    if requested is not None:
        return tuple(name for name in DETECTION_FILES if name in requested), None
    omitted = {name: unsupported[name] for name in DEFAULT_FORMATS if name in unsupported}
    message = f"No {' and '.join(omitted)}: {'; '.join(sorted(set(omitted.values())))}." if omitted else None
    return tuple(name for name in DEFAULT_FORMATS if name not in omitted), message


def write_results(result: SceneResult, folder: Path, formats: Sequence[str], *, image_id: int = 1) -> list[str]:
    """Write the detections in each format into `folder`, and return the file names."""
    coco = partial(write_coco, image_id=image_id)
    maps: dict[str, Writer] = {"geojson": write_geojson, "gpkg": write_geopackage, "parquet": _write_geoparquet}
    writers: dict[str, Writer] = {**maps, "coco": coco, "csv": write_csv}
    for name in formats:
        writers[name](result, folder / DETECTION_FILES[name])
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
            columns = chunk.properties()
            for geometry, *values in zip(_geometries(chunk), *columns.values(), strict=True):
                properties = dict(zip(columns, values, strict=True))
                feature = {"type": "Feature", "id": row, "geometry": geometry, "properties": properties}
                stream.write((",\n" if row else "\n") + json.dumps(feature, ensure_ascii=False))
                row += 1
        stream.write("\n]}\n")


def write_geopackage(result: SceneResult, path: Path) -> None:
    """Write a GeoPackage with a style in the scene's coordinate system; the same detections give the same bytes."""
    georeference = result.scene.georeference
    assert georeference is not None
    numbers = dict.fromkeys(("score", "length_m", "width_m", "heading_deg"), "float64")
    dtypes: dict[str, Any] = {"class_id": "int64", **numbers, "time": "datetime64[ms]"}
    dtypes |= {name: values.dtype for name, values in result.tags.items()}
    with atomic_path(path) as temporary, _fixed_date():
        temporary.unlink()  # GDAL creates the file itself
        try:
            for number, chunk in enumerate(_chunks(result)):
                properties = chunk.properties()
                properties["time"] = [None if time is None else time.removesuffix("Z") for time in properties["time"]]
                polygons = map_polygons(georeference, chunk.detections.outlines)
                pyogrio.raw.write(
                    temporary,
                    geometry=shapely.to_wkb(polygons, byte_order=1),
                    field_data=[np.array(values, dtypes.get(name, "object")) for name, values in properties.items()],
                    fields=list(properties),
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=georeference.crs.to_wkt(),
                    append=number > 0,
                    gdal_tz_offsets={"time": np.full(len(polygons), UTC_OFFSET)},
                )
            write_style(temporary, result.classes, layer=LAYER, time=FIXED_DATE)
        except (pyogrio.errors.DataSourceError, RuntimeError) as error:
            hint = "Choose another place, free disk space, or change the permissions."
            raise OutputError(f"Cannot write {path} ({error})", hint=hint) from error


def _write_geoparquet(result: SceneResult, path: Path) -> None:
    write_geoparquet(_chunks(result), path)


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
    """Write one line per object: class, score, box in pixels, tile, time, size on the ground, and center."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        for number, chunk in enumerate(_chunks(result)):
            columns = _columns(chunk)
            if number == 0:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _columns(chunk: SceneResult) -> dict[str, list[Any]]:
    properties = chunk.properties()
    columns: dict[str, list[Any]] = {name: properties[name] for name in ("class_id", "class_name", "score")}
    for name, values in zip(("x1_px", "y1_px", "x2_px", "y2_px"), chunk.detections.boxes.T, strict=True):
        columns[name] = [round(float(value), 3) for value in values]
    if chunk.detections.oriented is not None:
        names = ("center_x_px", "center_y_px", "length_px", "width_px", "angle_deg")
        for name, values in zip(names, chunk.detections.oriented.T, strict=True):
            columns[name] = [round(float(value), 3) for value in values]
        columns["angle_deg"] = [value % 180 for value in columns["angle_deg"]]  # 179.9997 was rounded up
    on_ground = ("tile", "time", "length_m", "width_m", "heading_deg", "crop")
    columns |= {name: properties[name] for name in on_ground if name in properties}
    if (lonlat := chunk.centers_lonlat()) is not None:
        for name, values in zip(("longitude", "latitude"), lonlat.T, strict=True):
            columns[name] = [f"{value:.7f}" if math.isfinite(value) else "" for value in values]
    return columns | chunk.tag_values()


def _chunks(result: SceneResult) -> Iterator[SceneResult]:
    """Yield the result in chunks; without detections, one empty chunk."""
    for start in range(0, max(1, len(result.detections)), CHUNK):
        yield result.part(start, start + CHUNK)


def _geometries(chunk: SceneResult) -> list[dict[str, Any] | None]:
    georeference = chunk.scene.georeference
    assert georeference is not None
    return box_geometries(georeference, chunk.detections.outlines)


def _unsupported(scene: SceneInfo) -> dict[str, str]:
    """Return the formats that a scene does not support, each with the reason."""
    if scene.georeference is None:
        reason = f"{scene.lonlat_problem}, so its objects have no map coordinates"
        return dict.fromkeys(("geojson", "gpkg", "parquet"), reason)
    problem = scene.lonlat_problem
    return {} if problem is None else {"geojson": problem[0].lower() + problem[1:]}


@contextmanager
def _fixed_date() -> Iterator[None]:
    with _GDAL_OPTIONS:
        before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": FIXED_DATE})
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
