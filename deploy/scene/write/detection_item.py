"""STAC item of a scene's detections: detections.stac.json, which lists the result files in catalogs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.scene.read.geojson import GeoJsonExtent, box_geometries
from deploy.scene.read.scene import SceneInfo
from deploy.scene.read.scene_list import SceneSource
from deploy.scene.result import SceneResult
from deploy.scene.write.file_names import COLLECTION_FILE, ITEM_FILE, PICTURE_FILES, RUN_FILE
from export.bundle.bundle import Bundle
from export.bundle.description import ITEM_NAME
from export.bundle.manifest import Manifest
from export.bundle.stac_item import END, FILE_EXTENSION, STAC_VERSION, START, file_asset, mlm_name, model_id
from ifkd import __version__
from ifkd.core.files import sha256_of, write_json
from ifkd.imagery.address import RasterAddress

PROCESSING_EXTENSION = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
LEVEL = "L4"
"""Processing level of the results of models."""
SCENE_TYPES = {"GTiff": "image/tiff; application=geotiff", "JP2OpenJPEG": "image/jp2", "PNG": "image/png"}
"""GDAL driver -> media type."""
FILE_TYPES = {
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".csv": "text/csv",
    ".png": "image/png",
    ".html": "text/html",
}
"""Suffix -> media type."""
COLLECTION_LINKS = [
    {"rel": relation, "href": f"../{COLLECTION_FILE}", "type": FILE_TYPES[".json"]}
    for relation in ("root", "parent", "collection")
]


@dataclass(frozen=True, slots=True)
class SceneOutline:
    """Outline of a scene in longitude and latitude."""

    geometry: dict[str, Any]
    """GeoJSON geometry."""
    bbox: tuple[float, float, float, float]
    """West, south, east, north; west > east across the antimeridian."""

    @classmethod
    def of(cls, scene: SceneInfo) -> "SceneOutline | None":
        """Return the outline of a scene, or None if not all of its corners have a longitude and latitude."""
        if scene.georeference is None or scene.lonlat_problem is not None:
            return None
        height, width = scene.size
        (geometry,) = box_geometries(scene.georeference, np.array([[0.0, 0.0, width, height]]))
        extent = GeoJsonExtent()
        extent.add([geometry] if geometry else [])
        bbox = extent.bbox()
        if geometry is None or bbox is None:
            return None
        west, south, east, north = bbox
        return cls(geometry, (west, south, east, north))


def write_item(
    result: SceneResult, source: SceneSource, folder: Path, *, files: Sequence[str], bundle: Bundle, in_collection: bool
) -> list[str]:
    """Write the item of the `files` in a folder; return its name, or nothing for a scene without a place.

    It has no time of the run, so the same results have the same item. With `in_collection`, it refers to a collection
    in the parent folder.
    """
    outline = SceneOutline.of(result.scene)
    if outline is None:
        return []
    item = _item(result, source, outline, bundle=bundle, in_collection=in_collection)
    present = [name for name in files if (folder / name).is_file()]
    assets = {name: _asset(folder / name) for name in present}
    run = {"href": f"./{RUN_FILE}", "type": FILE_TYPES[".json"], "roles": ["metadata"]}
    write_json(folder / ITEM_FILE, {**item, "assets": {**assets, RUN_FILE: run}})
    return [ITEM_FILE]


def collection_id(manifest: Manifest) -> str:
    """Return the id of the collection of a model's results."""
    return f"{model_id(manifest)}-detections"


def _item(
    result: SceneResult, source: SceneSource, outline: SceneOutline, *, bundle: Bundle, in_collection: bool
) -> dict[str, Any]:
    """Return the item without its assets."""
    scene, manifest = result.scene, bundle.manifest
    gsd_m = None if scene.georeference is None else scene.georeference.gsd_m(scene.size)
    collection = collection_id(manifest)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [PROCESSING_EXTENSION, FILE_EXTENSION],
        "id": f"{source.name}-{collection}",
        **({"collection": collection} if in_collection else {}),
        "geometry": outline.geometry,
        "bbox": list(outline.bbox),
        "properties": {
            "title": f"{', '.join(result.classes)} in {scene.name}",
            **_times(scene),
            **({} if gsd_m is None else {"gsd": gsd_m}),
            "processing:level": LEVEL,
            "processing:lineage": f"Detected tile by tile by {manifest.name} in {result.engine.precision}, and merged.",
            "processing:software": {"ifkd": __version__, result.engine.backend: result.engine.backend_version},
            "ifkd:objects": len(result.detections),
            "ifkd:objects_per_class": result.counts(),
        },
        "links": [*_origins(scene, source, bundle), *(COLLECTION_LINKS if in_collection else ())],
    }


def _times(scene: SceneInfo) -> dict[str, str | None]:
    """Return the acquisition time; an unknown one is the interval of all times, because a STAC item must have one."""
    if scene.time is not None:
        return {"datetime": str(scene.time)}
    return {"datetime": None, "start_datetime": START, "end_datetime": END}


def _origins(scene: SceneInfo, source: SceneSource, bundle: Bundle) -> Iterator[dict[str, str]]:
    """Yield links to the scene, and to the item of the model if the bundle has one."""
    media_type = {"type": SCENE_TYPES[scene.driver]} if scene.driver in SCENE_TYPES else {}
    yield {"rel": "derived_from", "href": _href(source.location), "title": scene.name, **media_type}
    if ITEM_NAME in bundle.manifest.files:
        model = {"mlm:name": mlm_name(bundle.manifest.name), "processing:level": LEVEL}
        yield {"rel": "derived_from", "href": _href(bundle.path / ITEM_NAME), "type": FILE_TYPES[".geojson"], **model}


def _href(location: Path | RasterAddress) -> str:
    return location.url if isinstance(location, RasterAddress) else location.absolute().as_posix()


def _asset(path: Path) -> dict[str, Any]:
    role = "overview" if path.name in PICTURE_FILES else "data"
    fields = {"type": FILE_TYPES[path.suffix], "roles": [role]}
    return file_asset(path.name, sha256=sha256_of(path), size=path.stat().st_size, **fields)
