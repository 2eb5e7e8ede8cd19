"""Operational figures. Oracles: loops over detections and objects, and scipy's assignment."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from scipy.optimize import linear_sum_assignment

from deploy.scene.operational_figures import Ground, RateOptions, operational_figures
from deploy.scene.read.georeference import Georeference
from ifkd.core.detections import Detections, pairwise_iou
from ifkd.core.oriented_boxes import envelopes
from ifkd.data.coco import LabeledImage

CLASSES = ("cargo", "tanker")
GROUND = Ground(None, 2.0, 3.0)


def boxes_of(rng, count):
    corner = rng.uniform(0, 150, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, 70, (count, 2))], axis=1).astype(np.float32)


def example(seed, *, objects=25, detections=30, ignore=0.2):
    rng = np.random.default_rng(seed)
    boxes, found = boxes_of(rng, objects), boxes_of(rng, detections)
    found[:objects] = boxes + rng.uniform(-6, 6, boxes.shape).astype(np.float32)
    scores = rng.uniform(0.3, 1.0, detections).astype(np.float32)
    labels = rng.integers(0, 2, objects)
    image = LabeledImage(1, Path("s.tif"), (220, 220), boxes, labels, "s.tif", rng.uniform(0, 1, objects) < ignore)
    own = np.concatenate([labels, rng.integers(0, 2, detections - objects)])
    own[::7] = 1 - own[::7]
    return Detections(found, scores, own), image


def figures_of(detections, image, **options):
    threshold = options.pop("score_threshold", 0.5)
    return operational_figures(
        detections, image, CLASSES, ground=options.pop("ground", GROUND), score_threshold=threshold, lowest_score=0.3,
        options=RateOptions(**options),
    )  # fmt: skip


def centers(boxes):
    return (boxes[:, :2].astype(float) + boxes[:, 2:]) / 2


def slow_pairs(detections, image, within_m):
    """Return the pairs of a detection and an object that match, and the detections that are ignored."""
    order = np.argsort(-detections.scores)
    objects = np.flatnonzero(~image.ignore)
    if within_m is None:
        pairs, free = [], set(objects.tolist())
        for row in order:
            same = [one for one in free if image.labels[one] == detections.labels[row]]
            iou = pairwise_iou(detections.boxes[row : row + 1], image.boxes[same])[0] if same else np.zeros(0)
            if len(iou) and iou.max() >= 0.5:
                pairs.append((row, same[iou.argmax()]))
                free.remove(same[iou.argmax()])
    else:
        distances = np.linalg.norm(centers(detections.boxes)[:, None] - centers(image.boxes[objects]), axis=2) * 2.0
        allowed = (distances < within_m) & (detections.labels[:, None] == image.labels[objects])
        rows, columns = linear_sum_assignment(np.where(allowed, distances, 1e6))
        pairs = [(row, objects[column]) for row, column in zip(rows, columns, strict=True) if allowed[row, column]]
    ignored = set()
    for row, (box, label) in enumerate(zip(detections.boxes, detections.labels, strict=True)):
        for region in image.boxes[image.ignore & (image.labels == label)]:
            wh = np.minimum(box[2:], region[2:]) - np.maximum(box[:2], region[:2])
            center = centers(box[None])[0]
            inside = wh.clip(0).prod() >= 0.5 * (box[2:] - box[:2]).prod()
            if within_m is not None:
                inside = (center >= region[:2]).all() and (center <= region[2:]).all()
            if inside:
                ignored.add(row)
    return pairs, ignored


@pytest.mark.parametrize("within_m", [None, 9.0])
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_a_slow_matching(seed, within_m):
    detections, image = example(seed)
    figures = figures_of(detections, image, within_m=within_m, size_limits=(50.0, 100.0))
    found = detections.select(detections.scores >= 0.5)
    pairs, ignored = slow_pairs(found, image, within_m)
    detected = np.isin(np.arange(len(image.boxes)), [one for _, one in pairs])
    alarm = ~np.isin(np.arange(len(found)), [*(one for one, _ in pairs), *ignored])
    sizes, own_sizes = ((one[:, 2:] - one[:, :2]).max(axis=1) * 2.0 for one in (image.boxes, found.boxes))
    groups = {"total": (np.ones_like(detected), np.ones_like(alarm), figures.total)}
    for label, name in enumerate(CLASSES):
        groups[name] = (image.labels == label, found.labels == label, figures.per_class[name])
    for name, low, high in (("small", 0, 50), ("medium", 50, 100), ("large", 100, np.inf)):
        of_objects, of_detections = ((one >= low) & (one < high) for one in (sizes, own_sizes))
        groups[name] = (of_objects, of_detections, figures.per_size[name])
    for name, (of_objects, of_detections, rates) in groups.items():
        got = (rates.objects, rates.detected, rates.false_alarms)
        expected = ((of_objects & ~image.ignore).sum(), (of_objects & detected).sum(), (alarm & of_detections).sum())
        assert got == expected, name
    assert figures.total.false_alarms_per_km2 == figures.total.false_alarms / 3.0
    assert figures.size_unit == "m"
    assert 0 < figures.total.detected < figures.total.objects
    assert figures.total.false_alarms > 0


@pytest.mark.parametrize("within_m", [None, 9.0])
def test_a_slanted_ignored_region_hides_no_false_alarm_beside_it(within_m):
    """A dock at 45 degrees: of the detections, one is on it, and one in open water but inside its upright box."""
    dock, ship = [100, 100, 150, 10, 45], [20, 180, 20, 8, 45]
    regions = np.array([dock, ship], np.float32)
    ignore, labels = np.array([True, False]), np.zeros(2, np.int64)
    image = LabeledImage(1, Path("s.tif"), (220, 220), envelopes(regions), labels, "s.tif", ignore, regions)
    own = np.array([ship, [105, 105, 20, 8, 45], [140, 70, 20, 8, 45]], np.float32)
    detections = Detections(envelopes(own), np.full(3, 0.9, np.float32), np.zeros(3, np.int64), own)
    figures = figures_of(detections, image, within_m=within_m)
    assert (figures.total.detected, figures.total.false_alarms) == (1, 1)


@pytest.mark.parametrize("within_m", [None, 9.0])
def test_the_curve_is_that_of_each_threshold_alone(within_m):
    detections, image = example(7)
    curve = figures_of(detections, image, within_m=within_m, score_threshold=0.52).curve
    assert [point.score_threshold for point in curve] == [
        0.3, 0.35, 0.4, 0.45, 0.5, 0.52, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95,
    ]  # fmt: skip
    for point in curve[::5]:
        alone = figures_of(detections, image, within_m=within_m, score_threshold=point.score_threshold)
        assert point.rates == alone.total
    detected, alarms = ([getattr(point.rates, name) for point in curve] for name in ("detected", "false_alarms"))
    assert detected == sorted(detected, reverse=True)
    assert detected[0] > detected[-1]
    assert alarms[0] > alarms[-1]


@pytest.mark.parametrize("within_m", [None, 9.0])
def test_any_class_ignores_the_labels(within_m):
    detections, image = example(8, ignore=0.0)
    same = Detections(detections.boxes, detections.scores, np.zeros_like(detections.labels))
    single = LabeledImage(1, image.path, image.size, image.boxes, np.zeros_like(image.labels), "s.tif", image.ignore)
    figures = figures_of(detections, image, within_m=within_m)
    assert figures.any_class == figures_of(same, single, within_m=within_m).total
    assert figures.any_class.detected > figures.total.detected


def test_distances_and_sizes_are_those_on_the_ground():
    """A pixel of a scene in degrees at 60 degrees north is twice as high as it is wide."""
    georeference = Georeference(CRS.from_epsg(4326), Affine(1e-4, 0, 10.0, 0, -1e-4, 60.0))
    ground = Ground.of_scene((100, 100), georeference, gsd_m=7.9, searched=0.5)
    assert ground.area_km2 == pytest.approx(100 * 100 * 7.9**2 / 1e6 / 2)
    box = np.array([[10, 10, 20, 20]], np.float32)
    image = LabeledImage(1, Path("s"), (100, 100), box, np.zeros(1, np.int64), "s", np.zeros(1, bool))
    found = {}
    for move in ((1.5, 0), (0, 1.5)):
        moved = box + np.array([*move, *move], np.float32)
        detections = Detections(moved, np.array([0.9], np.float32), np.zeros(1, np.int64))
        found[move] = figures_of(detections, image, ground=ground, within_m=12.0, size_limits=(60.0, 115.0))
    assert [one.total.detected for one in found.values()] == [1, 0]  # 8 m and 17 m
    assert found[0, 1.5].per_size["medium"].objects == 1  # 112 m high


def test_without_objects_detections_and_a_ground_sample_distance():
    nothing = LabeledImage(
        1, Path("s"), (9, 9), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), "s", np.zeros(0, bool)
    )
    figures = figures_of(Detections.empty(), nothing, ground=Ground(None, None, None))
    rates = figures.total
    assert (rates.objects, rates.detection_probability, rates.detection_probability_interval) == (0, None, None)
    assert (rates.false_alarms, rates.false_alarms_per_km2, rates.false_alarms_per_km2_interval) == (0, None, None)
    assert (figures.size_unit, figures.size_limits) == ("px", (32.0, 96.0))
    in_meters = figures_of(Detections.empty(), nothing, within_m=5.0)
    assert in_meters.total.false_alarms_per_km2_interval == pytest.approx((0.0, 3.6889 / 3.0), rel=1e-4)
