"""STAC collection of a batch run: collection.json, with a link to the item of each scene."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.cluster.summary import SceneEntry
from deploy.scene.read.geojson import GeoJsonExtent
from deploy.scene.write.detection_item import FILE_TYPES, LEVEL, PROCESSING_EXTENSION, collection_id
from deploy.scene.write.file_names import COLLECTION_FILE, ITEM_FILE
from export.bundle.manifest import Manifest
from export.bundle.stac_item import STAC_VERSION
from ifkd.core.files import write_json


def write_collection(entries: Sequence[SceneEntry], manifest: Manifest, folder: Path) -> list[str]:
    """Write the collection of the scenes that have an item, and return its name; remove it if there is none."""
    located = [entry for entry in entries if entry.bbox is not None]
    if not located:
        (folder / COLLECTION_FILE).unlink(missing_ok=True)
        return []
    write_json(folder / COLLECTION_FILE, detection_collection(located, manifest))
    return [COLLECTION_FILE]


def detection_collection(entries: Sequence[SceneEntry], manifest: Manifest) -> dict[str, Any]:
    """Return the collection of scenes that have a bounding box; the same scenes give the same collection."""
    here = {"href": f"./{COLLECTION_FILE}", "type": FILE_TYPES[".json"]}
    items = [
        {"rel": "item", "href": f"./{entry.name}/{ITEM_FILE}", "type": FILE_TYPES[".geojson"]} for entry in entries
    ]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [PROCESSING_EXTENSION],
        "id": collection_id(manifest),
        "title": f"Detections by {manifest.name}",
        "description": f"Detections of {', '.join(manifest.classes)} by the model {manifest.name}, an item per scene.",
        "license": "other",
        "extent": {"spatial": {"bbox": [_bbox(entries)]}, "temporal": {"interval": [_interval(entries)]}},
        "summaries": {"processing:level": [LEVEL]},
        "links": [{"rel": "root", **here}, *items],
    }


def _bbox(entries: Sequence[SceneEntry]) -> list[float] | None:
    """Return the bounding box of all scenes; west > east if it crosses the antimeridian."""
    extent = GeoJsonExtent()
    for west, south, east, north in filter(None, (entry.bbox for entry in entries)):
        parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
        rings = [[[left, south], [right, south], [right, north], [left, north]] for left, right in parts]
        extent.add([{"type": "Polygon", "coordinates": [ring]} for ring in rings])
    return extent.bbox()


def _interval(entries: Sequence[SceneEntry]) -> list[str | None]:
    """Return the first and the last acquisition time; open if a scene has none."""
    times = sorted((entry.time for entry in entries if entry.time is not None), key=datetime.fromisoformat)
    return [times[0], times[-1]] if len(times) == len(entries) else [None, None]
