"""Choice of a bundle's thresholds for scenes, by F1 on the validation part."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from export.bundle.manifest import CurvePoint, OperatingPoint
from ifkd.core.detections import Array, Detections, pairwise_iou
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
BOOTSTRAP_DRAWS = 1000
BACKGROUND_IOU = 0.1
"""A false detection with a lower IoU with every object is of the background."""


def choose_operating_point(
    dataset: CocoDataset, detections: Mapping[int, Detections], options: ExportOptions
) -> OperatingPoint:
    """Return the class-agnostic IoU and the score threshold for scenes, by F1 at an IoU of 0.5 over all classes.

    The class-agnostic IoU has the highest F1; of equal ones, that with the least suppression. Images of a validation
    part show more objects per area than scenes do, so the score threshold is the highest one whose F1 is within one
    standard error of the highest F1. If the recipe states the density of objects in scenes, each false detection on the
    background counts as many times as there is more background per object in a scene. A threshold that the recipe
    states is kept. `detections`, by image id, are those above the lowest threshold to consider.
    """
    stated_iou, stated_score = options.class_agnostic_iou, options.scene_score_threshold
    ious = CLASS_AGNOSTIC_IOUS if stated_iou is None else (stated_iou,)
    thresholds = np.arange(1.0, 0.0, -SCORE_STEP).round(4) if stated_score is None else np.array([stated_score])
    weight = _background_weight(dataset, options)
    matched = {iou: _Matched.of(dataset, detections, iou, background_weight=weight) for iou in ious}
    curves = {iou: one.curve(thresholds) for iou, one in matched.items()}
    best_iou = max(ious, key=lambda iou: max((point.f1 for point in curves[iou]), default=0.0))
    curve = curves[best_iou]
    density = options.scene_objects_per_km2
    expected = "" if density is None else f", for scenes with {density:g} objects per km²"
    source = f"{len(dataset)} images of {dataset.path.name}{expected}"
    if not any(point.f1 for point in curve):
        return default_operating_point(options, reason=f"no object is found in {source}")
    best = max(curve, key=lambda point: point.f1)
    error = matched[best_iou].f1_standard_error(best.score_threshold)
    chosen = next(point for point in curve if point.f1 >= best.f1 - error)  # in descending order
    every = [one for one in curve if one in (best, chosen) or round(one.score_threshold / SCORE_STEP) % CURVE_STEP == 0]
    return OperatingPoint(
        source=source,
        score_threshold=chosen.score_threshold,
        class_agnostic_iou=best_iou,
        f1_standard_error=round(error, 4),
        curve=tuple(every),
    )


def default_operating_point(options: ExportOptions, *, reason: str) -> OperatingPoint:
    """Return the thresholds of the recipe, or else the defaults."""
    score, iou = options.scene_score_threshold, options.class_agnostic_iou
    return OperatingPoint(
        source=f"not chosen: {reason.rstrip('.')}",
        score_threshold=SCORE_THRESHOLD if score is None else score,
        class_agnostic_iou=CLASS_AGNOSTIC_IOU if iou is None else iou,
    )


def _background_weight(dataset: CocoDataset, options: ExportOptions) -> float:
    """Return the background per object in scenes, relative to that in a data set; 1 if it is not known."""
    if options.scene_objects_per_km2 is None or options.gsd_m is None:
        return 1.0
    objects = sum(int((~image.ignore).sum()) for image in dataset.images)
    area_km2 = sum(image.size[0] * image.size[1] for image in dataset.images) * (options.gsd_m / 1000) ** 2
    return objects / area_km2 / options.scene_objects_per_km2


@dataclass(frozen=True, slots=True, eq=False)
class _Matched:
    """The detections of a data set, matched with its objects."""

    scores: Array
    matches: Array
    weights: Array
    """float64 [n]: number of detections in scenes for each one here, if it is false."""
    images: Array
    """int64 [n]: index of each detection's image."""
    objects: Array
    """int64 [images]: number of objects."""

    @classmethod
    def of(
        cls,
        dataset: CocoDataset,
        detections: Mapping[int, Detections],
        class_agnostic_iou: float,
        *,
        background_weight: float,
    ) -> "_Matched":
        scores, matches, weights = [], [], []
        for image in dataset.images:
            found = detections.get(image.id, Detections.empty()).in_canonical_order()
            if class_agnostic_iou < 1.0:
                found = nms(found, iou_threshold=class_agnostic_iou, class_agnostic=True)
            scores.append(found.scores)
            matches.append(match_objects(found, image))
            overlap = pairwise_iou(found.boxes, image.boxes).max(axis=1, initial=0.0)
            weights.append(np.where(overlap < BACKGROUND_IOU, background_weight, 1.0))
        objects = np.array([int((~image.ignore).sum()) for image in dataset.images], np.int64)
        images = np.repeat(np.arange(len(scores)), [len(one) for one in scores])
        empty = np.zeros(0, np.float32)
        joined = [np.concatenate([empty, *parts]) for parts in (scores, matches, weights)]
        return cls(scores=joined[0], matches=joined[1], weights=joined[2], images=images, objects=objects)

    def curve(self, thresholds: Array) -> list[CurvePoint]:
        """Return the points of score thresholds at which something is detected."""
        points = []
        for threshold in thresholds.tolist():
            tp, fp = (counts.sum().item() for counts in self._counts(threshold))
            if self.objects.any() and tp + fp:
                rounded = {name: round(rate or 0.0, 4) for name, rate in rates(tp, fp, int(self.objects.sum())).items()}
                points.append(CurvePoint(score_threshold=threshold, **rounded))
        return points

    def f1_standard_error(self, threshold: float) -> float:
        """Return the standard error of F1 at a score threshold, from images drawn with replacement."""
        tp, fp = self._counts(threshold)
        n = len(self.objects)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_DRAWS)
        f1 = 2 * (draws @ tp) / np.maximum(draws @ (tp + fp + self.objects), 1)
        return float(f1.std())

    def _counts(self, threshold: float) -> tuple[Array, Array]:
        """Return the number of true and the weight of false positives above a score threshold in each image."""
        above = self.scores > threshold
        images, matches, n = self.images[above], self.matches[above], len(self.objects)
        is_true, is_false = matches == TRUE_POSITIVE, matches == FALSE_POSITIVE
        false = np.bincount(images[is_false], self.weights[above][is_false], minlength=n)
        return np.bincount(images[is_true], minlength=n), false
