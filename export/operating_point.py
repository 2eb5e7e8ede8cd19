"""Choice of a bundle's thresholds for scenes: those with the highest F1 on the validation part."""

from collections.abc import Mapping

import numpy as np

from export.bundle.manifest import CurvePoint, OperatingPoint
from ifkd.core.detections import Array, Detections
from ifkd.core.postprocess import nms
from ifkd.data.coco import CocoDataset
from ifkd.data.object_matching import FALSE_POSITIVE, TRUE_POSITIVE, match_objects, rates
from ifkd.recipe import ExportOptions

SCORE_THRESHOLD, CLASS_AGNOSTIC_IOU = 0.3, 0.8
"""Thresholds of a bundle whose recipe states none, where none can be chosen."""
SCORE_STEP = 0.01
CLASS_AGNOSTIC_IOUS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
CURVE_STEP = 5
"""The record of the curve has every fifth score threshold."""


def choose_operating_point(
    dataset: CocoDataset, detections: Mapping[int, Detections], options: ExportOptions
) -> OperatingPoint:
    """Return the score threshold and the class-agnostic IoU with the highest F1 at an IoU of 0.5, over all classes.

    `detections`, by image id, are those above the lowest threshold to consider. A threshold that the recipe states is
    kept. Of equal choices the one with the least suppression wins, and then the one with the highest score threshold.
    """
    stated_iou, stated_score = options.class_agnostic_iou, options.scene_score_threshold
    ious = CLASS_AGNOSTIC_IOUS if stated_iou is None else (stated_iou,)
    scores = np.arange(1.0, 0.0, -SCORE_STEP).round(4) if stated_score is None else np.array([stated_score])
    curves = {iou: _curve(dataset, detections, scores, iou) for iou in ious}
    best_iou = max(ious, key=lambda iou: max((point.f1 for point in curves[iou]), default=0.0))
    curve = curves[best_iou]
    source = f"{len(dataset)} images of {dataset.path.name}"
    if not any(point.f1 for point in curve):
        return default_operating_point(options, reason=f"no object is found in {source}")
    best = max(curve, key=lambda point: point.f1)
    every = [point for point in curve if point is best or round(point.score_threshold / SCORE_STEP) % CURVE_STEP == 0]
    return OperatingPoint(
        source=source, score_threshold=best.score_threshold, class_agnostic_iou=best_iou, curve=tuple(every)
    )


def default_operating_point(options: ExportOptions, *, reason: str) -> OperatingPoint:
    """Return the thresholds of the recipe, or else the defaults."""
    score, iou = options.scene_score_threshold, options.class_agnostic_iou
    return OperatingPoint(
        source=f"defaults, because {reason}",
        score_threshold=SCORE_THRESHOLD if score is None else score,
        class_agnostic_iou=CLASS_AGNOSTIC_IOU if iou is None else iou,
    )


def _curve(
    dataset: CocoDataset, detections: Mapping[int, Detections], thresholds: Array, class_agnostic_iou: float
) -> list[CurvePoint]:
    """Return the points of descending score thresholds at which something is detected."""
    scores, matches = [np.zeros(0, np.float32)], [np.zeros(0, np.int8)]
    for image in dataset.images:
        found = detections.get(image.id, Detections.empty()).in_canonical_order()
        if class_agnostic_iou < 1.0:
            found = nms(found, iou_threshold=class_agnostic_iou, class_agnostic=True)
        scores.append(found.scores)
        matches.append(match_objects(found, image))
    score, match = np.concatenate(scores), np.concatenate(matches)
    objects = sum(dataset.objects_per_class().values())
    points = []
    for threshold in thresholds.tolist():
        above = match[score > threshold]
        tp, fp = int((above == TRUE_POSITIVE).sum()), int((above == FALSE_POSITIVE).sum())
        if objects and tp + fp:
            rounded = {name: round(rate or 0.0, 4) for name, rate in rates(tp, fp, objects).items()}
            points.append(CurvePoint(score_threshold=threshold, **rounded))
    return points
