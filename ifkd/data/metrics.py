"""COCO metrics of detections, computed by pycocotools, by upright or by oriented boxes."""

import contextlib
import io
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifkd.core.config import Schema
from ifkd.core.detections import Detections
from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import from_upright
from ifkd.data.coco import CocoDataset, coco_results, corner_polygons
from ifkd.data.oriented_metrics import ORIENTED, OrientedCocoEval, dota_ap50, object_outlines

IOU_50, IOU_75 = 0, 5
"""Indices of IoU 0.50 and 0.75 among COCO's ten thresholds."""

logger = logging.getLogger(__name__)

BoxKind = Literal["upright", "oriented"]
"""Boxes that detections and objects are compared by."""


class AveragePrecision(Schema):
    """Average precisions; None without objects."""

    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95 and over the classes with objects."""
    ap50: float | None
    ap75: float | None


class ClassMetrics(Schema):
    """Average precision of one class; None without objects of the class."""

    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95."""
    ap50: float | None
    ap75: float | None
    objects: int


class Metrics(AveragePrecision):
    """COCO metrics of a detector on a data set, between 0 and 1; averages are None without objects."""

    images: int
    objects: int
    per_class: dict[str, ClassMetrics]
    boxes: BoxKind = "upright"
    """Boxes whose IoU was used."""
    masks: AveragePrecision | None = None
    """Oriented boxes as pycocotools' masks of polygons (`segm`); None for upright ones, or if it was not requested."""
    dota_ap50: float | None = None
    """AP50 by the rules of DOTA; None as for `masks`."""


def evaluate(
    dataset: CocoDataset,
    detections: Mapping[int, Detections],
    *,
    boxes: BoxKind | None = None,
    every_measure: bool = False,
) -> Metrics:
    """Return the COCO metrics of detections, given by image id; a missing image has none.

    All detections count: COCO's limit of 100 per image and class is too low for large images. `boxes` are by default
    oriented if detections and all objects have oriented boxes; upright detections can be compared as oriented ones,
    too. An object without an oriented box is then compared by its upright one, and their number is logged. With
    `every_measure`, masks and DOTA's AP50 are computed for oriented boxes.

    Raises:
        DataError: Oriented boxes are requested, and no object has one.
    """
    labeled = any(image.oriented is not None for image in dataset.images)
    lacking = len(dataset.lacking_oriented()) if labeled else 0
    if boxes == "oriented" and not labeled:
        hint = "Compare upright boxes, or convert the data set from its source, which keeps polygons."
        raise DataError(f"The objects of {dataset.path} have no oriented boxes", hint=hint)
    if boxes is None:
        turned = any(found.oriented is not None for found in detections.values())
        boxes = "oriented" if labeled and turned and not lacking else "upright"
        if labeled and turned and lacking:
            logger.warning("%d objects of %s have no oriented box: upright boxes are compared", lacking, dataset.path)
    elif boxes == "oriented" and lacking:
        logger.warning("%d objects of %s have no oriented box: their upright boxes are used", lacking, dataset.path)
    detections = {key: as_boxes(boxes, found) for key, found in detections.items()}
    precision = _precision(dataset, detections, "bbox")
    counts = dataset.objects_per_class()
    means = [_means(precision[:, :, label]) for label in range(len(counts))]
    per_class = {name: ClassMetrics(**of, objects=counts[name]) for name, of in zip(counts, means, strict=True)}
    more: dict[str, Any] = {}
    if boxes == "oriented" and every_measure:
        masks = AveragePrecision(**_means(_precision(dataset, detections, "segm")))
        more = {"masks": masks, "dota_ap50": dota_ap50(dataset, detections)}
    numbers = {"images": len(dataset), "objects": sum(counts.values())}
    return Metrics(**_means(precision), **numbers, per_class=per_class, boxes=boxes, **more)


def as_boxes(boxes: BoxKind, found: Detections) -> Detections:
    """Return detections with upright boxes alone, or with oriented boxes in any case."""
    if boxes == "upright":
        return replace(found, oriented=None)
    return found if found.oriented is not None else replace(found, oriented=from_upright(found.boxes))


def _precision(dataset: CocoDataset, detections: Mapping[int, Detections], measure: Literal["bbox", "segm"]) -> Any:
    """Return COCOeval's precision by IoU, recall and class, of all areas and detections."""
    most = max((int(np.bincount(found.labels).max()) for found in detections.values() if len(found)), default=1)
    category_ids = tuple(range(1, len(dataset.classes) + 1))
    content = replace(dataset, category_ids=category_ids).to_coco()
    results = coco_results(detections.items(), category_ids)
    oriented = any(found.oriented is not None for found in detections.values())
    if oriented:
        objects = np.concatenate([np.zeros((0, 5), np.float32), *map(object_outlines, dataset.images)])
        for entry, box, polygon in zip(content["annotations"], objects, corner_polygons(objects), strict=True):
            entry |= {ORIENTED: box, "segmentation": [polygon]}
        found = np.concatenate([one.outlines for one in detections.values()])
        for entry, box in zip(results, found, strict=True):
            entry[ORIENTED] = box
    kind = OrientedCocoEval if oriented and measure == "bbox" else COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = content
        ground_truth.createIndex()
        evaluator = kind(ground_truth, ground_truth.loadRes(results) if results else COCO(), measure)
        evaluator.params.maxDets = [1, 10, max(100, most)]
        evaluator.params.imgIds = [image.id for image in dataset.images]
        evaluator.params.catIds = list(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][:, :, :, 0, 2]


def _means(precision: Any) -> dict[str, float | None]:
    return {"mean_ap": _mean(precision), "ap50": _mean(precision[IOU_50]), "ap75": _mean(precision[IOU_75])}


def _mean(precision: Any) -> float | None:
    """Return the mean of the precisions that are defined; COCOeval marks the others with -1."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else None
