"""Labels of objects, and their files: COCO json of images, GeoJSON of scenes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.transform
import shapely
from affine import Affine
from rasterio.warp import transform as transform_points
from shapely.geometry.base import BaseGeometry

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.oriented_labels import box_around, corner_polygon
from ifkd.data.synthetic.geometry import Bounds, Frame, bounds_of

MIN_VISIBLE = 0.4  # Fraction of an object's area inside the image below which it is an ignore region
MIN_EXTENT_PX = 1.0  # Side of a box below which an object cut by the border is left out


@dataclass(frozen=True, slots=True, eq=False)
class ObjectLabel:
    """One ship or aircraft in an image."""

    category: str
    outline: BaseGeometry
    """The silhouette inside the image, pixels of the image."""
    heading_deg: float
    """Direction of the bow or nose, degrees clockwise from the top of the image."""
    ignore: bool

    @property
    def oriented(self) -> Array:
        """Oriented box [5] of the outline, as in `ifkd.core.oriented_boxes`, parallel to the heading."""
        return box_around(shapely.get_coordinates(self.outline), self.heading_deg - 90.0)

    @property
    def box(self) -> Bounds:
        """Bounds of the outline, pixels of the image, rounded as in files."""
        x1, y1, x2, y2 = (round(value, 3) for value in self.outline.bounds)
        return x1, y1, x2, y2


LabeledImage = tuple[str, list[ObjectLabel]]  # File name and labels of an image


@dataclass(frozen=True, slots=True, eq=False)
class PlacedObject:
    """A ship or an aircraft at its position."""

    category: str
    frame: Frame
    """Its middle, and the direction of its bow or nose."""
    outline: Array
    """Its silhouette, float64 [n, 2], x, y, world meters."""

    @property
    def bounds(self) -> Bounds:
        """Bounds of the silhouette, world meters."""
        return bounds_of(self.outline)


class LabelSource:
    """Boxes and labels of the objects of a world."""

    def __init__(self, objects: Sequence[PlacedObject], gsd_m: float) -> None:
        self._objects, self._gsd_m = objects, gsd_m

    @property
    def boxes(self) -> Array:
        """The objects' boxes, float64 [n, 4], x1 y1 x2 y2, pixels of the world."""
        return np.array([one.bounds for one in self._objects]).reshape(-1, 4) / self._gsd_m

    def labels(self, window: Window) -> list[ObjectLabel]:
        """Return the labels of the objects in a window."""
        labels = []
        for one in self._objects:
            whole = shapely.Polygon(one.outline / self._gsd_m - (window.left, window.top))
            inside = whole.intersection(shapely.box(0, 0, window.width, window.height))
            x1, y1, x2, y2 = inside.bounds  # NaN where there is nothing inside
            if min(x2 - x1, y2 - y1) >= MIN_EXTENT_PX:
                ignore = inside.area < MIN_VISIBLE * whole.area or self._is_hidden(one)
                heading = (math.degrees(one.frame.angle) + 90.0) % 360.0
                labels.append(ObjectLabel(one.category, inside, heading, ignore))
        return labels

    def _is_hidden(self, _: PlacedObject) -> bool:
        """Return whether clouds hide most of an object."""
        return False


def coco_file(images: Sequence[LabeledImage], size: tuple[int, int], classes: Sequence[str]) -> dict[str, Any]:
    """Return a COCO file of images of one `size` (height, width).

    `bbox` and `area` are those of the silhouette, `segmentation` has the corners of the oriented box.
    """
    height, width = size
    names = enumerate([name for name, _ in images], start=1)
    found = [(number, label) for number, (_, labels) in enumerate(images, start=1) for label in labels]
    annotations = []
    for number, (image_id, label) in enumerate(found, start=1):
        x1, y1, x2, y2 = label.box
        bbox = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
        annotation = {
            "id": number, "image_id": image_id, "category_id": classes.index(label.category) + 1, "bbox": bbox,
            "area": round(label.outline.area, 3), "iscrowd": int(label.ignore),
            "segmentation": corner_polygon(label.oriented), "heading_deg": round(label.heading_deg, 1),
        }  # fmt: skip
        annotations.append(annotation)
    return {
        "images": [{"id": number, "file_name": name, "height": height, "width": width} for number, name in names],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }


def geojson_file(labels: Sequence[ObjectLabel], transform: Affine, crs: str) -> dict[str, Any]:
    """Return the boxes of a scene as GeoJSON polygons in WGS84, longitude first (RFC 7946)."""
    features = []
    for label in labels:
        x1, y1, x2, y2 = label.box
        # Counter-clockwise on the map, where rows run southwards.
        rows, columns = [y2, y2, y1, y1, y2], [x1, x2, x2, x1, x1]
        points = transform_points(crs, "EPSG:4326", *rasterio.transform.xy(transform, rows, columns, offset="ul"))
        heading, ring = round(label.heading_deg, 1), [list(point) for point in zip(*points, strict=True)]
        properties = {"class": label.category, "bbox_px": label.box, "heading_deg": heading, "ignore": label.ignore}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}
