"""COCO's box metrics of a set of detections, by pycocotools."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifkd.core.config import Schema
from ifkd.core.detections import Detections
from ifkd.data.coco import CocoDataset, coco_results

IOU_50, IOU_75 = 0, 5
"""Indices of IoU 0.50 and 0.75 in COCO's ten thresholds."""


class ClassMetrics(Schema):
    """Average precision of one class; None where the data set has no object of it."""

    mean_ap: float | None
    """Mean over IoU 0.50 to 0.95."""
    ap50: float | None
    ap75: float | None
    objects: int
    """Objects in the data set."""


class Metrics(Schema):
    """COCO box metrics of one detector on one data set; all between 0 and 1."""

    mean_ap: float
    """Mean over IoU 0.50 to 0.95 and over the classes that occur."""
    ap50: float
    ap75: float
    images: int
    objects: int
    per_class: dict[str, ClassMetrics]


def evaluate(dataset: CocoDataset, detections: Mapping[int, Detections], *, max_detections: int = 100) -> Metrics:
    """Return the COCO metrics of `detections`, given by image id; an image left out has none.

    Of each image and class the best `max_detections` count: COCO's 100, more where an image is a whole scene.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _ground_truth(dataset)
        truth.createIndex()
        results = coco_results(detections.items(), range(1, len(dataset.classes) + 1))
        evaluator = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        evaluator.params.maxDets = [1, 10, max_detections]
        evaluator.params.imgIds = [image.id for image in dataset.images]
        evaluator.params.catIds = list(range(1, len(dataset.classes) + 1))
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]  # IoU, recall, class; all areas, max_detections
    counts = dataset.objects_per_class()
    per_class = {
        name: ClassMetrics(
            mean_ap=_mean(precision[:, :, label]),
            ap50=_mean(precision[IOU_50, :, label]),
            ap75=_mean(precision[IOU_75, :, label]),
            objects=counts[name],
        )
        for label, name in enumerate(dataset.classes)
    }
    return Metrics(
        mean_ap=_mean(precision) or 0.0,
        ap50=_mean(precision[IOU_50]) or 0.0,
        ap75=_mean(precision[IOU_75]) or 0.0,
        images=len(dataset),
        objects=sum(counts.values()),
        per_class=per_class,
    )


def _mean(precision: Any) -> float | None:
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else None


def _ground_truth(dataset: CocoDataset) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        for (x1, y1, x2, y2), label, ignore in zip(
            image.boxes.tolist(), image.labels.tolist(), image.ignore.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    return {
        "info": {},
        "images": [{"id": image.id, "height": image.size[0], "width": image.size[1]} for image in dataset.images],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(dataset.classes)],
    }
