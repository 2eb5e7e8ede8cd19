"""Ground truth as files: COCO json of pictures, GeoJSON of scenes."""

from collections.abc import Sequence
from typing import Any

import rasterio.transform
from affine import Affine
from rasterio.warp import transform as transform_points

from ifkd.data.synthetic.picture import Truth, polygon_area

DIGITS = 3
"""Decimals of a pixel."""


def coco_annotation(truth: Truth, category_id: int) -> dict[str, Any]:
    """Return a ship as a COCO annotation, still without its ids; `area` is that of the silhouette."""
    x1, y1, x2, y2 = (round(value, DIGITS) for value in truth.box)
    return {
        "category_id": category_id,
        "bbox": [x1, y1, round(x2 - x1, DIGITS), round(y2 - y1, DIGITS)],
        "area": round(polygon_area(truth.outline), DIGITS),
        "iscrowd": int(truth.ignore),
        "segmentation": [[round(float(value), 2) for value in truth.outline.ravel()]],
        "heading_deg": round(truth.heading_deg, 1),
    }


def coco_file(
    images: Sequence[tuple[str, tuple[int, int], Sequence[dict[str, Any]]]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return a COCO file of images, each given as (file name, (height, width), annotations)."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, (height, width), found) in enumerate(images, start=1):
        listed.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "images": listed,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, start=1)],
    }


def geojson_file(truths: Sequence[Truth], transform: Affine, crs: str) -> dict[str, Any]:
    """Return the boxes of a scene as GeoJSON polygons in WGS84, longitude first (RFC 7946)."""
    features = []
    for truth in truths:
        x1, y1, x2, y2 = (round(value, DIGITS) for value in truth.box)
        # Counter-clockwise on the map, where rows run southwards.
        rows, columns = [y2, y2, y1, y1, y2], [x1, x2, x2, x1, x1]
        easts, norths = rasterio.transform.xy(transform, rows, columns, offset="ul")
        longitudes, latitudes = transform_points(crs, "EPSG:4326", easts, norths)
        ring = [[longitude, latitude] for longitude, latitude in zip(longitudes, latitudes, strict=True)]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "class": truth.kind,
                    "bbox_px": [x1, y1, x2, y2],
                    "heading_deg": round(truth.heading_deg, 1),
                    "ignore": truth.ignore,
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}
