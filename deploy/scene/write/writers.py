"""The files of a scene's detections: GeoJSON, GeoPackage, COCO results, CSV, pictures, and run.json beside them."""

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

from deploy.scene.read.georeference import GeoJsonExtent, corners, geojson_geometry, map_rings
from deploy.scene.read.scene import SceneInfo
from deploy.scene.result import SceneResult
from ifkd.core.detections import Array
from ifkd.core.errors import OutputError, SceneError
from ifkd.core.files import atomic_path

FORMATS = ("geojson", "gpkg", "coco", "csv")
FILE_NAMES = {
    "geojson": "detections.geojson",
    "gpkg": "detections.gpkg",
    "coco": "detections.coco.json",
    "csv": "detections.csv",
}
PICTURES = ("quicklook.png", "quicklook_detail.png")
RESULT_NAMES = (*FILE_NAMES.values(), *PICTURES, "map.html")
"""All files of a run, beside run.json."""
OBJECTS_AT_ONCE = 2_000
LAYER = "detections"
FIXED_DATE = "2000-01-01T00:00:00.000Z"
"""The date a GeoPackage says it was made, so that the same detections give the same bytes."""
_GDAL_OPTIONS = threading.Lock()


def choose_formats(asked: Sequence[str] | None, scene: SceneInfo) -> tuple[tuple[str, ...], str | None]:
    """Return the formats to write for a scene, and a line that says what is left out and why, or None.

    Raises:
        SceneError: A format was asked for by name that the scene cannot have.
    """
    refused = _refused(scene)
    if asked is not None:
        for name in asked:
            if name in refused:
                raise SceneError(
                    f"{scene.name} cannot be written as {name}: {refused[name]}",
                    hint="Ask for --format coco csv, which are in pixels, or give the scene a coordinate system "
                    "(gdal_edit.py -a_srs).",
                )
        return tuple(name for name in FORMATS if name in asked), None
    formats = tuple(name for name in FORMATS if name not in refused)
    reasons = sorted(set(refused.values()))
    left_out = " and ".join(name for name in FORMATS if name in refused)
    return formats, f"No {left_out}: {'; '.join(reasons)}." if refused else None


def write_results(result: SceneResult, folder: Path, formats: Sequence[str], *, image_id: int = 1) -> list[str]:
    """Write the detections in each format into `folder`, and return the files' names."""
    writers: dict[str, Callable[[Path], None]] = {
        "geojson": lambda path: write_geojson(result, path),
        "gpkg": lambda path: write_geopackage(result, path),
        "coco": lambda path: write_coco(result, path, image_id=image_id),
        "csv": lambda path: write_csv(result, path),
    }
    for name in formats:
        writers[name](folder / FILE_NAMES[name])
    return [FILE_NAMES[name] for name in formats]


def write_geojson(result: SceneResult, path: Path) -> None:
    """Write RFC 7946 GeoJSON: WGS84, closed anticlockwise rings, 7 decimals; one feature a line."""
    extent = GeoJsonExtent()
    for part in _parts(result):
        extent.add([geometry for geometry in _geometries(part) if geometry])
    bbox = extent.bbox()
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection"' + (f', "bbox": {json.dumps(bbox)}' if bbox else ""))
        stream.write(', "features": [')
        row = 0
        for part in _parts(result):
            properties = part.properties()
            for place, geometry in enumerate(_geometries(part)):
                feature = {
                    "type": "Feature",
                    "id": row,
                    "geometry": geometry,
                    "properties": {name: values[place] for name, values in properties.items()},
                }
                stream.write((",\n" if row else "\n") + json.dumps(feature, ensure_ascii=False))
                row += 1
        stream.write("\n]}\n")


def write_geopackage(result: SceneResult, path: Path) -> None:
    """Write a GeoPackage in the scene's own coordinate system; equal detections give equal bytes."""
    georeference = result.scene.georeference
    assert georeference is not None
    dtypes = {"class_id": np.int64, "score": np.float64}
    with atomic_path(path) as temporary, _fixed_date():
        temporary.unlink()  # GDAL makes the file itself
        for number, part in enumerate(_parts(result)):
            properties = {
                name: np.array(values, dtype=dtypes.get(name, object)) for name, values in part.properties().items()
            }
            try:
                pyogrio.raw.write(
                    temporary,
                    geometry=_wkb(map_rings(georeference, part.detections.boxes)),
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
                    f"Cannot write {path} ({error})", hint="Choose another place, or free space and rights."
                ) from error


def write_coco(result: SceneResult, path: Path, *, image_id: int = 1) -> None:
    """Write COCO results, one object a line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        start = "["
        for part in _parts(result):
            for row in part.to_coco(image_id):
                stream.write(f"{start}\n{json.dumps(row, allow_nan=False)}")
                start = ","
        stream.write("[]\n" if start == "[" else "\n]\n")


def write_csv(result: SceneResult, path: Path) -> None:
    """Write one line per object: class, score, box in pixels, tile, and the center's longitude and latitude."""
    georeference = result.scene.georeference
    placed = georeference is not None and georeference.lonlat_problem(result.scene.size) is None
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        for number, part in enumerate(_parts(result)):
            columns = _columns(part, placed=placed)
            if number == 0:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _columns(part: SceneResult, *, placed: bool) -> dict[str, list[Any]]:
    properties = part.properties()
    columns: dict[str, list[Any]] = {name: properties[name] for name in ("class_id", "class_name", "score")}
    for name, values in zip(("x1_px", "y1_px", "x2_px", "y2_px"), part.detections.boxes.T, strict=True):
        columns[name] = [round(float(value), 3) for value in values]
    columns["tile"] = properties["tile"]
    georeference = part.scene.georeference
    if placed and georeference is not None:
        boxes = part.detections.boxes.astype(np.float64)
        centers = georeference.to_lonlat((boxes[:, :2] + boxes[:, 2:]) / 2.0)
        columns["longitude"] = [f"{value:.7f}" for value in centers[:, 0]]
        columns["latitude"] = [f"{value:.7f}" for value in centers[:, 1]]
    return columns


def _parts(result: SceneResult) -> Iterator[SceneResult]:
    """Yield the result in parts, so that writing takes little memory; one empty part when nothing was found."""
    for start in range(0, max(1, len(result.detections)), OBJECTS_AT_ONCE):
        yield result.part(start, start + OBJECTS_AT_ONCE)


def _geometries(part: SceneResult) -> list[dict[str, Any] | None]:
    return [geojson_geometry(ring) for ring in _lonlat_corners(part)]


def _refused(scene: SceneInfo) -> dict[str, str]:
    """Return the formats a scene cannot have, each with the reason."""
    if scene.georeference is None:
        reason = f"{scene.name} has no coordinate system, so its objects have no place on the map"
        return {"geojson": reason, "gpkg": reason}
    problem = scene.georeference.lonlat_problem(scene.size)
    if problem is None:
        return {}
    return {"geojson": problem[0].lower() + problem[1:]}


def _lonlat_corners(result: SceneResult) -> Array:
    georeference = result.scene.georeference
    assert georeference is not None
    return georeference.to_lonlat(corners(result.detections.boxes).reshape(-1, 2)).reshape(-1, 4, 2)


def _wkb(rings: Array) -> Array:
    """Return closed rings, float64 [n, 5, 2], as little-endian well-known binary polygons."""
    layout = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))])
    records = np.zeros(len(rings), layout)
    records["order"], records["kind"], records["rings"], records["points"] = 1, 3, 1, 5
    records["xy"] = rings
    shapes = np.empty(len(rings), object)
    shapes[:] = [record.tobytes() for record in records]
    return shapes


@contextmanager
def _fixed_date() -> Iterator[None]:
    with _GDAL_OPTIONS:
        before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": FIXED_DATE})
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
