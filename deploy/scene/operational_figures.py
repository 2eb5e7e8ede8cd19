"""Operational figures of a scene: probability of detection and false alarms per km², with confidence intervals.

They are stated for all classes together, by class, by size and over the score threshold. Boxes match objects by IoU, or
by the distance of their centers. Intervals of probabilities are Wilson's, those of false alarms exact ones of Poisson's
distribution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import shapely

from deploy.scene.read.georeference import Georeference, centers, geocentric
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas
from ifkd.core.errors import UsageError
from ifkd.core.oriented_boxes import corners, from_upright
from ifkd.data.center_matching import match_centers, neighbors_within
from ifkd.data.coco import LabeledImage
from ifkd.data.intervals import CONFIDENCE, Interval, poisson_interval, wilson_interval
from ifkd.data.object_matching import IN_IGNORED_REGION, MATCH_IOU, NO_OBJECT, matched_objects
from ifkd.data.oriented_metrics import comparable_outlines

SIZES = ("small", "medium", "large")
SIZE_LIMITS_M, SIZE_LIMITS_PX = (25.0, 100.0), (32.0, 96.0)
"""Where medium and large begin: the longer side of a box in meters, or as in COCO the root of its area in pixels."""
CURVE_STEP = 0.05


class DetectionRates(Schema):
    """Rates of the detections at or above a score."""

    objects: int
    """Labeled objects."""
    detected: int
    """Those of them that match a detection."""
    detection_probability: float | None
    """None without objects, as is its interval."""
    detection_probability_interval: Interval | None
    false_alarms: int
    """Detections that match no object and are not ignored."""
    false_alarms_per_km2: float | None
    """None if the area is unknown, as is its interval."""
    false_alarms_per_km2_interval: Interval | None

    @classmethod
    def of(cls, *, objects: int, detected: int, false_alarms: int, area_km2: float | None) -> "DetectionRates":
        """Return the rates of counts."""
        low, high = poisson_interval(false_alarms)
        return cls(
            objects=objects,
            detected=detected,
            detection_probability=detected / objects if objects else None,
            detection_probability_interval=wilson_interval(detected, objects),
            false_alarms=false_alarms,
            false_alarms_per_km2=false_alarms / area_km2 if area_km2 else None,
            false_alarms_per_km2_interval=(low / area_km2, high / area_km2) if area_km2 else None,
        )


class RatesAtScore(Schema):
    """Rates at one score threshold."""

    score_threshold: float
    rates: DetectionRates


class OperationalFigures(Schema):
    """Operational figures of a scene."""

    matching: Literal["iou", "center"]
    min_iou: float | None
    """Least IoU of a detection and its object; None for matching by centers."""
    within_m: float | None
    """Distance of centers, meters, below which a detection and an object match; None for matching by IoU."""
    score_threshold: float
    confidence: float
    """Of all intervals."""
    area_km2: float | None
    """Area that was searched: that of the scene, times the fraction of its tiles that were processed."""
    total: DetectionRates
    """All classes; a detection matches objects of its own class only."""
    any_class: DetectionRates
    """All classes; a detection matches objects of any class."""
    per_class: dict[str, DetectionRates]
    size_unit: Literal["m", "px"]
    """m: longer side of a box on the ground. px: square root of its area in the scene."""
    size_limits: tuple[float, float]
    """Sizes at which medium and large begin."""
    per_size: dict[str, DetectionRates]
    """Objects by their own size, false alarms by that of the detection; without those that are not on the Earth."""
    curve: tuple[RatesAtScore, ...]
    """Rates of `total` over the score threshold, from that of the run."""


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Places, lengths and area of a scene on the ground."""

    georeference: Georeference | None
    """None for a scene without longitudes and latitudes."""
    gsd_m: float | None
    """Ground sample distance, used where there is no georeference; None if it is unknown, too."""
    area_km2: float | None

    @classmethod
    def of_scene(
        cls, size: tuple[int, int], georeference: Georeference | None, *, gsd_m: float | None, searched: float
    ) -> "Ground":
        """Return the ground of a scene of `size`, of whose tiles the fraction `searched` was processed."""
        if georeference is not None and georeference.lonlat_problem(size) is not None:
            georeference = gsd_m = None
        return cls(georeference, gsd_m, None if gsd_m is None else size[0] * size[1] * gsd_m**2 / 1e6 * searched)

    def places_m(self, boxes: Array) -> Array:
        """Return the centers of boxes [n, 4] or [n, 5] as points in meters, float64 [n, dimensions]; NaN off the Earth.

        Raises:
            UsageError: The scene has no ground sample distance.
        """
        if self.georeference is not None:
            return geocentric(self.georeference.to_lonlat(centers(boxes)))
        if self.gsd_m is None:
            problem = "Distances in meters need the scene's georeference, which it does not have"
            raise UsageError(problem, hint="Omit --within-m to match boxes by IoU.")
        return centers(boxes) * self.gsd_m

    def sizes(self, boxes: Array) -> tuple[Array, Literal["m", "px"]]:
        """Return the size of boxes [n, 4] or [n, 5], float64 [n], and its unit; see `OperationalFigures.size_unit`."""
        if self.georeference is not None:
            return self.georeference.sides_m(boxes).max(axis=1), "m"
        if self.gsd_m is not None:
            sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
            return sides.astype(np.float64).max(axis=1) * self.gsd_m, "m"
        return np.sqrt(box_areas(boxes).astype(np.float64)), "px"


@dataclass(frozen=True, slots=True)
class RateOptions:
    """Rules by which detections and objects are matched and grouped."""

    within_m: float | None = None
    """Distance of centers below which they match, meters; None for matching by IoU."""
    size_limits: tuple[float, float] | None = None
    """Sizes at which medium and large begin; None for the default of the unit."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: A value is invalid.
        """
        if self.within_m is not None and not 0.0 < self.within_m < np.inf:
            raise UsageError("--within-m must be a distance in meters", got=self.within_m)
        if self.size_limits is not None and not 0.0 < self.size_limits[0] < self.size_limits[1] < np.inf:
            raise UsageError("--size-limits must be two ascending sizes", got=" ".join(map(str, self.size_limits)))


def operational_figures(
    detections: Detections,
    image: LabeledImage,
    classes: Sequence[str],
    *,
    ground: Ground,
    score_threshold: float,
    lowest_score: float,
    options: RateOptions | None = None,
) -> OperationalFigures:
    """Return the figures of detections against the labels of a scene.

    The curve begins at `lowest_score`, the least score of the run.

    Raises:
        UsageError: Matching by distance is requested for a scene without a ground sample distance.
    """
    options = options or RateOptions()
    detections = detections.select(np.argsort(-detections.scores, kind="stable"))
    steps = np.arange(0.0, 1.0, CURVE_STEP).round(2).tolist()
    thresholds = sorted({score_threshold, *(step for step in steps if step > lowest_score), lowest_score})[::-1]
    stops = [int((detections.scores >= np.float32(threshold)).sum()) for threshold in thresholds]
    matched = _matched(detections, image, stops, ground, options.within_m)
    of_curve = [_rates(one, ~image.ignore, ground.area_km2) for one in matched]
    index = thresholds.index(score_threshold)
    own, found = matched[index], detections.select(np.arange(stops[index]))
    unlabeled = replace(found, labels=np.zeros_like(found.labels))
    one_class = replace(image, labels=np.zeros_like(image.labels))
    (any_class,) = _matched(unlabeled, one_class, [len(found)], ground, options.within_m)
    outlines, objects = comparable_outlines(found, image)
    (object_sizes, unit), (sizes, _) = ground.sizes(objects), ground.sizes(outlines)
    limits = options.size_limits or (SIZE_LIMITS_M if unit == "m" else SIZE_LIMITS_PX)
    object_bins, bins = (np.where(np.isnan(one), -1, np.digitize(one, limits)) for one in (object_sizes, sizes))
    return OperationalFigures(
        matching="iou" if options.within_m is None else "center",
        min_iou=MATCH_IOU if options.within_m is None else None,
        within_m=options.within_m,
        score_threshold=score_threshold,
        confidence=CONFIDENCE,
        area_km2=ground.area_km2,
        total=of_curve[index],
        any_class=_rates(any_class, ~image.ignore, ground.area_km2),
        per_class={
            name: _rates(own, ~image.ignore & (image.labels == label), ground.area_km2, found.labels == label)
            for label, name in enumerate(classes)
        },
        size_unit=unit,
        size_limits=limits,
        per_size={
            name: _rates(own, ~image.ignore & (object_bins == number), ground.area_km2, bins == number)
            for number, name in enumerate(SIZES)
        },
        curve=tuple(
            RatesAtScore(score_threshold=threshold, rates=rates)
            for threshold, rates in list(zip(thresholds, of_curve, strict=True))[::-1]
        ),
    )


def _rates(matched: Array, objects: Array, area_km2: float | None, detections: Array | None = None) -> DetectionRates:
    """Return the rates of some objects and detections, both bool, given the matched object of each detection."""
    alarms = matched == NO_OBJECT
    detected = objects[matched[matched >= 0]]
    alarms = alarms if detections is None else alarms & detections
    counts = {"objects": int(objects.sum()), "detected": int(detected.sum()), "false_alarms": int(alarms.sum())}
    return DetectionRates.of(**counts, area_km2=area_km2)


def _matched(
    detections: Detections, image: LabeledImage, stops: list[int], ground: Ground, within_m: float | None
) -> list[Array]:
    """Return, for the first n detections with n each of `stops`, what `matched_objects` returns, by IoU or distance."""
    if within_m is None:
        matched = matched_objects(detections, image)
        return [matched[:stop] for stop in stops]
    return list(_matched_centers(detections, image, stops, ground, within_m))


def _matched_centers(
    detections: Detections, image: LabeledImage, stops: list[int], ground: Ground, within_m: float
) -> Iterator[Array]:
    """Yield matches by distance; a detection without an object is ignored if its center is in an ignored region."""
    outlines, of_objects = comparable_outlines(detections, image)
    places, objects = ground.places_m(outlines), ground.places_m(of_objects)
    counted = np.flatnonzero(~image.ignore & np.isfinite(objects).all(axis=1))
    neighbors = [
        [(object_, length) for object_, length in row if image.labels[counted[object_]] == label]
        for row, label in zip(neighbors_within(places, objects[counted], within_m), detections.labels, strict=True)
    ]
    ignored = np.zeros(len(detections), bool)
    points = centers(outlines)
    regions = of_objects[image.ignore]
    shapes = shapely.polygons(corners(regions if regions.shape[1] == 5 else from_upright(regions)))
    for shape, label in zip(shapes, image.labels[image.ignore], strict=True):
        ignored |= shapely.intersects_xy(shape, *points.T) & (detections.labels == label)
    for matched in match_centers(neighbors, stops):
        without = np.where(ignored[: len(matched)], IN_IGNORED_REGION, NO_OBJECT)
        yield np.where(matched >= 0, np.append(counted, -1)[matched], without)
