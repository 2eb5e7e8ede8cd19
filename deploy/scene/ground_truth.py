"""Detections of a scene against its labels: so that tiling and merging themselves are measured.

Labels lie in a COCO file, in pixels, or in GeoJSON, on the map. What is compared is upright in the scene's pixels: a
georeference turns and stretches all boxes alike, so they overlap there by the same share as on the map.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.scene.read.georeference import Georeference
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas, pairwise_iou
from ifkd.core.errors import DataError
from ifkd.data.coco import CocoDataset, LabeledImage, read_coco
from ifkd.data.metrics import evaluate

MATCH_IOU = 0.5
DETECTIONS_AT_ONCE = 2048
NAMES = ("class_name", "class", "label", "name", "category")
"""Properties of a GeoJSON feature that may hold its class, in the order they are looked for."""


class ClassScore(Schema):
    """How well objects of one class were found; None where the labels have none."""

    mean_ap: float | None
    ap50: float | None
    ap75: float | None
    precision: float | None
    """Share of the detections that are objects; None without detections."""
    recall: float | None
    f1: float | None
    """2 hits / (2 hits + misses + false alarms); None where there is neither an object nor a detection."""
    objects: int
    detections: int


class SceneScore(Schema):
    """How well the objects of a scene were found; precision, recall and F1 at an IoU of 0.5."""

    truth: str
    """The file of labels."""
    image_id: int
    """The scene's id in it; 1 where the file has none."""
    score_threshold: float
    """Precision, recall and F1 are of the detections at or above it; average precisions are of all that are listed."""
    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95 and over the classes that occur; the next two as well."""
    ap50: float | None
    ap75: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    objects: int
    detections: int
    unknown_objects: int
    """Labeled objects of classes the detector does not know; they count neither for it nor against it."""
    per_class: dict[str, ClassScore]


def read_ground_truth(
    path: Path,
    *,
    scene: str,
    size: tuple[int, int],
    classes: tuple[str, ...],
    georeference: Georeference | None = None,
) -> "SceneGroundTruth":
    """Read the labels of one scene.

    Args:
        path: COCO json that lists the scene among its images, by file name, or that lists one image only; or GeoJSON
            (RFC 7946) whose polygons have their class in `class_name`.
        scene: The scene's file name.
        size: The scene's (height, width).
        classes: The detector's class names by label.
        georeference: Where the scene lies; GeoJSON needs it.

    Raises:
        DataError: The file cannot be read, does not list the scene, or shares no class with the detector.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The labels {path} cannot be read ({error})") from error
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        if georeference is None:
            raise DataError(
                f"{scene} has no coordinate system, so the labels of {path} have no place in it",
                hint="Give labels in pixels, as a COCO file.",
            )
        image, known = _mapped_image(path, content, size, georeference)
    else:
        dataset = read_coco(path)
        image, known = _image_of(dataset, scene), dataset.classes
        if image.size != size:
            raise DataError(
                f"The labels of {scene} in {path} are those of another raster",
                got=f"{image.size[1]}x{image.size[0]} (width x height)",
                expected=f"{size[1]}x{size[0]}",
            )
    if not set(classes) & set(known):
        raise DataError(f"{path} has none of the detector's classes", got=list(known), expected=list(classes))
    return SceneGroundTruth(path, image, known, classes=classes)


class SceneGroundTruth:
    """The labels of one scene.

    Args:
        path: The file they came from.
        image: The scene's labels, in pixels.
        known: Class names by label of the file.
        classes: The detector's class names by label.
    """

    def __init__(self, path: Path, image: LabeledImage, known: tuple[str, ...], *, classes: tuple[str, ...]) -> None:
        self._path = path
        self._classes = classes
        label_of = np.array([classes.index(name) if name in classes else -1 for name in known])
        labels = label_of[image.labels] if len(image.labels) else image.labels
        familiar = labels >= 0
        self.image_id = image.id
        self._unknown = int((~familiar & ~image.ignore).sum())
        # An object of an unknown class is no reproach to any known one: its place is ignored in all of them.
        repeated = [np.full(int((~familiar).sum()), label, np.int64) for label in range(len(classes))]
        self._image = replace(
            image,
            boxes=np.concatenate([image.boxes[familiar], *[image.boxes[~familiar]] * len(classes)]),
            labels=np.concatenate([labels[familiar], *repeated]),
            ignore=np.concatenate([image.ignore[familiar], np.ones(sum(map(len, repeated)), bool)]),
        )
        self._dataset = CocoDataset(path, classes, tuple(range(1, len(classes) + 1)), (self._image,))

    def score(self, listed: Detections, *, score_threshold: float) -> SceneScore:
        """Return how well detections match the labels: average precisions of all, the rest at or above a score."""
        most = int(np.bincount(listed.labels, minlength=1).max())
        metrics = evaluate(self._dataset, {self._image.id: listed}, max_detections=max(100, most))
        found = listed.select(listed.scores >= np.float32(score_threshold))
        per_class: dict[str, ClassScore] = {}
        hits = alarms = 0
        for label, name in enumerate(self._classes):
            right, wrong = self._matched(found.boxes[found.labels == label], label)
            objects = metrics.per_class[name].objects
            per_class[name] = ClassScore(
                mean_ap=metrics.per_class[name].mean_ap,
                ap50=metrics.per_class[name].ap50,
                ap75=metrics.per_class[name].ap75,
                precision=_share(right, right + wrong),
                recall=_share(right, objects),
                f1=_share(2 * right, right + wrong + objects),
                objects=objects,
                detections=int((found.labels == label).sum()),
            )
            hits, alarms = hits + right, alarms + wrong
        return SceneScore(
            truth=str(self._path),
            image_id=self._image.id,
            score_threshold=score_threshold,
            mean_ap=metrics.mean_ap if metrics.objects else None,
            ap50=metrics.ap50 if metrics.objects else None,
            ap75=metrics.ap75 if metrics.objects else None,
            precision=_share(hits, hits + alarms),
            recall=_share(hits, metrics.objects),
            f1=_share(2 * hits, hits + alarms + metrics.objects),
            objects=metrics.objects,
            detections=len(found),
            unknown_objects=self._unknown,
            per_class=per_class,
        )

    def _matched(self, boxes: Array, label: int) -> tuple[int, int]:
        """Return how many boxes [n, 4], best first, are an object of their own, and how many are nothing."""
        of_class = self._image.labels == label
        objects = self._image.boxes[of_class & ~self._image.ignore]
        ignored = self._image.boxes[of_class & self._image.ignore]
        free = np.ones(len(objects), bool)
        right = wrong = 0
        for start in range(0, len(boxes), DETECTIONS_AT_ONCE):
            some = boxes[start : start + DETECTIONS_AT_ONCE]
            overlap, excused = pairwise_iou(some, objects), _inside(some, ignored)
            for row in range(len(some)):
                best = np.where(free, overlap[row], -1.0)
                if len(objects) and best.max() >= MATCH_IOU:
                    free[best.argmax()] = False
                    right += 1
                elif not excused[row]:
                    wrong += 1
        return right, wrong


def pixel_boxes(features: list[dict[str, Any]], georeference: Georeference, size: tuple[int, int]) -> Array:
    """Return the upright boxes around GeoJSON polygons, float32 [n, 4], pixels of a scene; not finite off the map."""
    boxes = np.full((len(features), 4), np.nan)
    for row, feature in enumerate(features):
        geometry = feature["geometry"]
        if geometry["type"] not in {"Polygon", "MultiPolygon"}:
            raise ValueError(f"a label is a {geometry['type']}")
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        points = georeference.from_lonlat(np.array([point[:2] for polygon in polygons for point in polygon[0]]), size)
        boxes[row] = [*points.min(axis=0), *points.max(axis=0)]
    return boxes.astype(np.float32)


def _mapped_image(
    path: Path, content: dict[str, Any], size: tuple[int, int], georeference: Georeference
) -> tuple[LabeledImage, tuple[str, ...]]:
    """Return the labels on a scene, and their class names; those that lie beside the scene are left out."""
    try:
        features = [feature for feature in content["features"] if feature["geometry"] is not None]
        names = [next(str(feature["properties"][key]) for key in NAMES if key in feature["properties"])
                 for feature in features]  # fmt: skip
        boxes = pixel_boxes(features, georeference, size)
        ignore = np.array([bool(feature["properties"].get("ignore")) for feature in features], bool)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration) as error:
        raise DataError(
            f"{path} is not a file of labels ({error!r})",
            expected="GeoJSON with polygons in longitude and latitude, each with its class in class_name",
        ) from error
    height, width = size
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    on_scene = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    known = tuple(sorted(set(names)))
    labels = np.array([known.index(name) for name in names], np.int64)
    image = LabeledImage(
        id=1,
        path=path,
        size=size,
        boxes=boxes[on_scene],
        labels=labels[on_scene],
        scene=path.name,
        ignore=ignore[on_scene],
    )
    return image, known


def _image_of(dataset: CocoDataset, scene: str) -> LabeledImage:
    named = [image for image in dataset.images if image.path.name == scene]
    if not named:
        named = [image for image in dataset.images if image.path.stem == Path(scene).stem]
    if not named and len(dataset) == 1:
        return dataset.images[0]
    if len(named) != 1:
        raise DataError(
            f"{dataset.path} lists {len(named) or 'no'} images of the name {scene}",
            expected="one",
            hint="Name the COCO file whose images include the scene.",
        )
    return named[0]


def _inside(boxes: Array, regions: Array) -> Array:
    """Return which boxes lie for at least half in one of the ignored regions, bool [n]."""
    if not len(boxes) or not len(regions):
        return np.zeros(len(boxes), bool)
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2).max(axis=1)
    half: Array = shared >= MATCH_IOU * box_areas(boxes)
    return half


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
