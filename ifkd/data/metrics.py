"""COCO box metrics of detections, computed by pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifkd.core.config import Schema
from ifkd.core.detections import Detections
from ifkd.data.coco import CocoDataset, coco_results

IOU_50, IOU_75 = 0, 5
"""Indices of IoU 0.50 and 0.75 among COCO's ten thresholds."""


class ClassMetrics(Schema):
    """Average precision of one class; None without objects of the class."""

    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95."""
    ap50: float | None
    ap75: float | None
    objects: int


class Metrics(Schema):
    """COCO box metrics of a detector on a data set, between 0 and 1; averages are None without objects."""

    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95 and over the classes with objects."""
    ap50: float | None
    ap75: float | None
    images: int
    objects: int
    per_class: dict[str, ClassMetrics]


def evaluate(dataset: CocoDataset, detections: Mapping[int, Detections]) -> Metrics:
    """Return the COCO metrics of detections, given by image id; a missing image has none.

    All detections count: COCO's limit of 100 per image and class is too low for large images.
    """
    most = max((int(np.bincount(found.labels).max()) for found in detections.values() if len(found)), default=1)
    category_ids = tuple(range(1, len(dataset.classes) + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = replace(dataset, category_ids=category_ids).to_coco()
        ground_truth.createIndex()
        results = coco_results(detections.items(), category_ids)
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results) if results else COCO(), "bbox")
        evaluator.params.maxDets = [1, 10, max(100, most)]
        evaluator.params.imgIds = [image.id for image in dataset.images]
        evaluator.params.catIds = list(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]  # IoU, recall, class; all areas, all detections
    counts = dataset.objects_per_class()
    means = [_means(precision[:, :, label]) for label in range(len(counts))]
    per_class = {name: ClassMetrics(**of, objects=counts[name]) for name, of in zip(counts, means, strict=True)}
    return Metrics(**_means(precision), images=len(dataset), objects=sum(counts.values()), per_class=per_class)


def _means(precision: Any) -> dict[str, float | None]:
    return {"mean_ap": _mean(precision), "ap50": _mean(precision[IOU_50]), "ap75": _mean(precision[IOU_75])}


def _mean(precision: Any) -> float | None:
    """Return the mean of the precisions that are defined; COCOeval marks the others with -1."""
    defined = precision[precision > -1]
    return float(np.mean(defined)) if defined.size else None
