"""Evaluate the detections of a scene against labels, including the effects of tiling and merging.

Labels are COCO, in pixels, or GeoJSON, in map coordinates. Boxes are compared in the scene's pixels: a georeference is
nearly affine within a scene, so their IoU is the same as on the map. Those of an oriented detector are compared as
oriented boxes, others parallel to the image axes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.scene.operational_figures import Ground, OperationalFigures, RateOptions, operational_figures
from deploy.scene.read.geojson import SWAPPED, extent_of, require_lonlat
from deploy.scene.read.georeference import Georeference, edge_points
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.files import read_json
from ifkd.data.coco import CocoDataset, LabeledImage, read_coco
from ifkd.data.metrics import BoxKind, as_boxes, evaluate
from ifkd.data.object_matching import FALSE_POSITIVE, TRUE_POSITIVE, match_objects, rates
from ifkd.data.oriented_labels import cut_boxes, oriented_boxes

CLASS_KEYS = ("class_name", "class", "label", "name", "category")
"""Properties of a GeoJSON feature that may contain its class, in order of preference."""


class ClassScore(Schema):
    """Metrics of one class; averages are None without labeled objects."""

    mean_ap: float | None
    ap50: float | None
    ap75: float | None
    precision: float | None
    """Fraction of the detections that match an object; None without detections."""
    recall: float | None
    f1: float | None
    """2 TP / (2 TP + FP + FN); None without objects and detections."""
    objects: int
    detections: int


class SceneScore(Schema):
    """Metrics of a scene; precision, recall and F1 are at an IoU of 0.5."""

    boxes: BoxKind = "upright"
    """Boxes that were compared."""

    ground_truth: str
    """File of the labels."""
    image_id: int
    """Id of the scene in the file; 1 for GeoJSON."""
    score_threshold: float
    """Precision, recall and F1 are of the detections at or above it; average precisions are of all detections."""
    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95 and over the classes with objects; AP50 and AP75 are means over classes too."""
    ap50: float | None
    ap75: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    objects: int
    detections: int
    unknown_objects: int
    """Labeled objects of classes that the detector does not have; they are ignored."""
    per_class: dict[str, ClassScore]
    operational: OperationalFigures | None = None
    """Probability of detection and false alarms per km²."""


def read_ground_truth(
    path: Path,
    *,
    scene: str,
    size: tuple[int, int],
    classes: tuple[str, ...],
    georeference: Georeference | None = None,
    place_problem: str | None = None,
) -> "SceneGroundTruth":
    """Read the labels of one scene, given by file name and size (height, width), for the classes of a detector.

    The file is COCO JSON that lists the scene by file name, or GeoJSON (RFC 7946) with polygons whose class is in
    `class_name`, which needs the scene's georeference; without it, `place_problem` is the reason.

    Raises:
        DataError: The file is unreadable, has no labels of the scene, or has no class of the detector.
    """
    content = read_json(path, what="file of labels")
    if isinstance(content, dict) and content.get("type") in ("Feature", "FeatureCollection"):
        problem = f"{scene} {place_problem}" if georeference is None else georeference.lonlat_problem(size)
        if georeference is None or problem is not None:
            problem = f"{problem}, so the GeoJSON labels of {path} cannot be located in it"
            raise DataError(problem, hint="Use labels in pixels, as a COCO file.")
        image, known = _image_of_geojson(path, content, scene=scene, size=size, georeference=georeference)
    else:
        dataset = read_coco(path)
        image, known = _image_of_coco(dataset, scene), dataset.classes
        if image.size != size:
            got, expected = f"{image.size[1]}x{image.size[0]} (width x height)", f"{size[1]}x{size[0]}"
            raise DataError(f"The labels of {scene} in {path} are of another raster", got=got, expected=expected)
    if not set(classes) & set(known):
        raise DataError(f"{path} has none of the detector's classes", got=list(known), expected=list(classes))
    return SceneGroundTruth(path, image, known, classes=classes)


class SceneGroundTruth:
    """The labels of one scene, in pixels: `known` are the class names of the file, `classes` those of the detector."""

    def __init__(self, path: Path, image: LabeledImage, known: tuple[str, ...], *, classes: tuple[str, ...]) -> None:
        self._path = path
        self._classes = classes
        self.image_id = image.id
        label_of = np.array([classes.index(name) if name in classes else -1 for name in known], np.int64)
        labels = label_of[image.labels]
        has_class, unknown = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
        self._unknown = int((~image.ignore[unknown]).sum())
        # An object of an unknown class is an ignore region of every class.
        index = np.concatenate([has_class, np.tile(unknown, len(classes))])
        labels = np.concatenate([labels[has_class], np.repeat(np.arange(len(classes)), len(unknown))])
        ignore = image.ignore[index]
        ignore[len(has_class) :] = True
        oriented = None if image.oriented is None else image.oriented[index]
        self._image = replace(image, boxes=image.boxes[index], labels=labels, ignore=ignore, oriented=oriented)
        self._dataset = CocoDataset(path, classes, tuple(range(1, len(classes) + 1)), (self._image,))

    def score(self, detections: Detections, *, score_threshold: float, boxes: BoxKind | None = None) -> SceneScore:
        """Return the metrics of detections: average precisions of all, the others of those at or above a score.

        For `boxes` see `ifkd.data.metrics.evaluate`.

        Raises:
            DataError: Oriented boxes are requested, and no object has one.
        """
        metrics = evaluate(self._dataset, {self._image.id: detections}, boxes=boxes)
        detections = as_boxes(metrics.boxes, detections)
        found = detections.select(detections.scores >= np.float32(score_threshold))
        matches = match_objects(found, self._image)
        per_class: dict[str, ClassScore] = {}
        true_positives = false_positives = 0
        for label, name in enumerate(self._classes):
            of_class, averages = matches[found.labels == label], metrics.per_class[name]
            tp, fp = int((of_class == TRUE_POSITIVE).sum()), int((of_class == FALSE_POSITIVE).sum())
            of_name = rates(tp, fp, averages.objects)
            per_class[name] = ClassScore(**averages.model_dump(), **of_name, detections=len(of_class))
            true_positives, false_positives = true_positives + tp, false_positives + fp
        return SceneScore(
            boxes=metrics.boxes,
            ground_truth=str(self._path),
            image_id=self._image.id,
            score_threshold=score_threshold,
            mean_ap=metrics.mean_ap,
            ap50=metrics.ap50,
            ap75=metrics.ap75,
            **rates(true_positives, false_positives, metrics.objects),
            objects=metrics.objects,
            detections=len(found),
            unknown_objects=self._unknown,
            per_class=per_class,
        )

    def figures(
        self,
        detections: Detections,
        *,
        ground: Ground,
        score_threshold: float,
        lowest_score: float,
        options: RateOptions | None = None,
    ) -> OperationalFigures:
        """Return the operational figures of detections; see `operational_figures`."""
        return operational_figures(
            detections,
            self._image,
            self._classes,
            ground=ground,
            score_threshold=score_threshold,
            lowest_score=lowest_score,
            options=options,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PixelOutlines:
    """Polygons in the pixels of a scene; NaN for one without a place."""

    boxes: Array
    """float64 [n, 4], upright boxes around them."""
    oriented: Array
    """float32 [n, 5], smallest oriented boxes around them."""

    @classmethod
    def of(cls, lonlat: list[Array], georeference: Georeference, size: tuple[int, int]) -> "PixelOutlines":
        """Return polygons, points [_, 2] in degrees each, of a scene of `size` (height, width)."""
        pixels = georeference.from_lonlat(np.concatenate([np.zeros((0, 2)), *lonlat]), size)
        pixels[~np.isfinite(pixels).all(axis=1)] = np.nan
        starts = np.cumsum([0, *map(len, lonlat)])[:-1]
        corners = [which.reduceat(pixels, starts) for which in (np.fmin, np.fmax)] if lonlat else [np.zeros((0, 2))] * 2
        located = [points[np.isfinite(points).all(axis=1)] for points in np.split(pixels, starts[1:])] if lonlat else []
        return cls(np.concatenate(corners, axis=1), oriented_boxes([one if len(one) > 2 else None for one in located]))

    def on_scene(self, size: tuple[int, int]) -> Array:
        """Return which polygons touch a scene, bool [n]."""
        boxes = _clipped(self.boxes, size)
        return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))


def exterior_points(feature: dict[str, Any]) -> Array:
    """Return the points of the exterior rings of a GeoJSON polygon, float64 [n, 2]."""
    geometry = feature["geometry"]
    if geometry["type"] not in {"Polygon", "MultiPolygon"}:
        raise ValueError(f"a label is a {geometry['type']}")
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    points = [(float(point[0]), float(point[1])) for polygon in polygons for point in polygon[0]]
    if not points:
        raise ValueError("a label has no points")
    return np.array(points)


def _image_of_geojson(
    path: Path, content: dict[str, Any], *, scene: str, size: tuple[int, int], georeference: Georeference
) -> tuple[LabeledImage, tuple[str, ...]]:
    """Return the labels inside a scene, and their class names."""
    try:
        features = content["features"] if content["type"] == "FeatureCollection" else [content]
        features = [feature for feature in features if feature["geometry"] is not None]
        names = [next(str(feature["properties"][key]) for key in CLASS_KEYS if key in feature["properties"])
                 for feature in features]  # fmt: skip
        lonlat = [exterior_points(feature) for feature in features]
        ignore = np.array([bool(feature["properties"].get("ignore")) for feature in features], bool)
    except (AttributeError, IndexError, KeyError, OverflowError, StopIteration, TypeError, ValueError) as error:
        expected = "GeoJSON with polygons in longitude and latitude, each with its class in class_name"
        raise DataError(f"{path} is not a file of labels ({error!r})", expected=expected) from error
    points = np.concatenate([np.zeros((0, 2)), *lonlat])
    require_lonlat(content, points, what=f"The file of labels {path}", error=DataError)
    outlines = PixelOutlines.of(lonlat, georeference, size)
    on_scene = outlines.on_scene(size)
    if len(on_scene) and not on_scene.any():
        outline = edge_points(np.array([[0, 0, size[1], size[0]]]), 1)[0]
        swapped = PixelOutlines.of([one[:, ::-1] for one in lonlat], georeference, size).on_scene(size)
        raise DataError(
            f"None of the {len(on_scene)} labels of {path} is on {scene}",
            got=extent_of(points),
            expected=f"labels that touch {extent_of(georeference.to_lonlat(outline))}",
            hint=SWAPPED if swapped.any() else None,
        )
    known = tuple(sorted(set(names)))
    labels = np.array([known.index(name) for name in names], np.int64)
    of_scene = _clipped(outlines.boxes, size)[on_scene], labels[on_scene], path.name, ignore[on_scene]
    oriented = cut_boxes(outlines.oriented[on_scene], size).oriented
    return LabeledImage(1, path, size, *of_scene, oriented), known


def _clipped(boxes: Array, size: tuple[int, int]) -> Array:
    """Return boxes clipped to a scene, float32 [n, 4]."""
    height, width = size
    return boxes.clip(0, [width, height, width, height]).astype(np.float32)


def _image_of_coco(dataset: CocoDataset, scene: str) -> LabeledImage:
    named = [image for image in dataset.images if image.path.name == scene]
    named = named or [image for image in dataset.images if image.path.stem == Path(scene).stem]
    if len(named) != 1:
        problem = f"{dataset.path} lists {len(named) or 'no'} images with the name {scene}"
        listed = ", ".join(image.path.name for image in dataset.images[:3]) or "no image"
        hint = "Use a COCO file whose images include the scene, or correct its file_name."
        raise DataError(problem, got=listed, expected="one", hint=hint)
    return named[0]
