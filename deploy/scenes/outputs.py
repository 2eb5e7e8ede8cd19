"""The files of a scene's detections: GeoJSON, GeoPackage, COCO results, CSV, pictures, and run.json beside them."""

import csv
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw

from deploy.scenes.geo import corners, geojson_bbox, geojson_geometry, map_rings
from deploy.scenes.result import SceneResult
from deploy.scenes.scene import SceneInfo
from ifkd.detections import Array
from ifkd.errors import OutputError, SceneError
from ifkd.files import atomic_path, make_folder, write_json, write_text

FORMATS = ("geojson", "gpkg", "coco", "csv")
RUN_NAME = "run.json"
PRODUCER = "ifkd detect"
STAGE_NAME = ".ifkd-detect"
"""Where files lie until all are written; one left behind marks a folder of ours whose run was cut off."""
FILE_NAMES = {
    "geojson": "detections.geojson",
    "gpkg": "detections.gpkg",
    "coco": "detections.coco.json",
    "csv": "detections.csv",
}
PICTURES = ("quicklook.png", "quicklook_detail.png")
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
                    mend="Ask for --format coco csv, which are in pixels, or give the scene a coordinate system "
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
        "coco": lambda path: write_json(path, result.to_coco(image_id)),
        "csv": lambda path: write_csv(result, path),
    }
    for name in formats:
        writers[name](folder / FILE_NAMES[name])
    return [FILE_NAMES[name] for name in formats]


def write_geojson(result: SceneResult, path: Path) -> None:
    """Write RFC 7946 GeoJSON: WGS84, closed anticlockwise rings, 7 decimals; one feature a line."""
    lonlat = _lonlat_corners(result)
    geometries = [geojson_geometry(ring) for ring in lonlat]
    bbox = geojson_bbox([geometry for geometry in geometries if geometry])
    properties = result.properties()
    features = [
        json.dumps(
            {
                "type": "Feature",
                "id": row,
                "geometry": geometry,
                "properties": {name: values[row] for name, values in properties.items()},
            },
            ensure_ascii=False,
        )
        for row, geometry in enumerate(geometries)
    ]
    head = '{"type": "FeatureCollection"' + (f', "bbox": {json.dumps(bbox)}' if bbox else "")
    write_text(path, head + ', "features": [\n' + ",\n".join(features) + "\n]}\n")


def write_geopackage(result: SceneResult, path: Path) -> None:
    """Write a GeoPackage in the scene's own coordinate system; equal detections give equal bytes."""
    georeference = result.scene.georeference
    assert georeference is not None
    rings = map_rings(georeference, result.detections.boxes)
    dtypes = {"class_id": np.int64, "score": np.float64}
    properties = {
        name: np.array(values, dtype=dtypes.get(name, object)) for name, values in result.properties().items()
    }
    with atomic_path(path) as temporary, _fixed_date():
        temporary.unlink()  # GDAL makes the file itself
        try:
            pyogrio.raw.write(
                temporary,
                geometry=_wkb(rings),
                field_data=list(properties.values()),
                fields=list(properties),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=georeference.crs.to_wkt(),
            )
        except (pyogrio.errors.DataSourceError, RuntimeError) as error:
            raise OutputError(f"Cannot write {path} ({error})", mend="Choose another place, or free space.") from error


def write_csv(result: SceneResult, path: Path) -> None:
    """Write one line per object: class, score, box in pixels, tile, and the centre's longitude and latitude."""
    properties = result.properties()
    columns: dict[str, list[Any]] = {name: properties[name] for name in ("class_id", "class_name", "score")}
    for name, values in zip(("x1_px", "y1_px", "x2_px", "y2_px"), result.detections.boxes.T, strict=True):
        columns[name] = [round(float(value), 3) for value in values]
    columns["tile"] = properties["tile"]
    georeference = result.scene.georeference
    if georeference is not None and georeference.lonlat_problem(result.scene.size) is None:
        boxes = result.detections.boxes.astype(np.float64)
        centres = georeference.to_lonlat((boxes[:, :2] + boxes[:, 2:]) / 2.0)
        columns["longitude"] = [f"{value:.7f}" for value in centres[:, 0]]
        columns["latitude"] = [f"{value:.7f}" for value in centres[:, 1]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def check_folder(folder: Path) -> None:
    """Make sure that results may be put into `folder`, before any work is done.

    Raises:
        OutputError: It cannot be made or written, or holds files of these names that no detection wrote.
    """
    make_folder(folder)
    if not _is_ours(folder):
        foreign = [name for name in (RUN_NAME, *FILE_NAMES.values(), *PICTURES) if (folder / name).exists()]
        if foreign:
            raise OutputError(
                f"{folder} holds {', '.join(foreign)}, not written by {PRODUCER}",
                mend="Choose another folder with --out, or move them away.",
            )
    with atomic_path(folder / STAGE_NAME / "probe"):
        pass
    shutil.rmtree(folder / STAGE_NAME)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder for the files of a run; when the block ends well they take their places in `folder`.

    Results of an earlier run that this one does not write are taken away. run.json comes last, so where it lies
    the files beside it are whole and belong together.
    """
    stage = make_folder(folder / STAGE_NAME)
    for old in stage.iterdir():
        old.unlink()
    yield stage
    fresh = sorted(path.name for path in stage.iterdir() if path.name != RUN_NAME)
    try:
        for name in (*FILE_NAMES.values(), *PICTURES):
            if name not in fresh:
                (folder / name).unlink(missing_ok=True)
        for name in [*fresh, RUN_NAME]:
            (stage / name).replace(folder / name)
        stage.rmdir()
    except OSError as error:
        raise OutputError(f"Cannot write into {folder} ({error.strerror or error})") from error


def _is_ours(folder: Path) -> bool:
    if (folder / STAGE_NAME).is_dir():
        return True
    try:
        content = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("producer", "")).startswith(PRODUCER)


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
