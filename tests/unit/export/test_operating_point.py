"""Choice of the thresholds for scenes, against a plain search over all thresholds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.operating_point import CLASS_AGNOSTIC_IOUS, choose_operating_point, default_operating_point
from ifkd.core.detections import Detections, pairwise_iou
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.recipe import ExportOptions

SIZE = (300, 300)


def example(seed, images=3):
    """Objects on a grid; each is found, found twice as two classes, or missed; and there are false detections."""
    rng = np.random.default_rng(seed)
    labeled, detections = [], {}
    for image_id in range(1, images + 1):
        corner = 60.0 * np.stack([np.arange(4), rng.integers(0, 4, 4)], axis=1)
        boxes = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, 4)
        none = np.zeros(4, bool)
        labeled.append(LabeledImage(image_id, Path(f"{image_id}.png"), SIZE, boxes, labels, str(image_id), none))
        twice = boxes + rng.uniform(-4, 4, boxes.shape).astype(np.float32)
        wrong = boxes[:2] + np.float32([25, 25, 25, 25])
        parts = np.concatenate([boxes[1:], twice[1:], wrong])
        of_class = np.concatenate([labels[1:], 1 - labels[1:], labels[:2]])
        scores = rng.uniform([0.4] * 3 + [0.1] * 5, [0.95] * 3 + [0.6] * 5).astype(np.float32)
        detections[image_id] = Detections(parts, scores, of_class)
    return CocoDataset(Path("v.json"), ("ship", "tug"), (1, 2), tuple(labeled)), detections


def plain_f1(dataset, detections, threshold, agnostic_iou, background_weight=1):
    """F1 of a data set, one detection after the other."""
    true = false = 0
    for image in dataset.images:
        found = detections[image.id]
        order = [index for index in np.argsort(-found.scores) if found.scores[index] > threshold]
        kept = []
        for index in order:
            if all(pairwise_iou(found.boxes[[index]], found.boxes[[k]])[0, 0] <= agnostic_iou for k in kept):
                kept.append(index)
        taken = set()
        for index in kept:
            iou = pairwise_iou(found.boxes[[index]], image.boxes)[0]
            free = [n for n in range(len(iou)) if n not in taken and image.labels[n] == found.labels[index]]
            best = max(free, key=lambda n: iou[n], default=None)
            if best is not None and iou[best] >= 0.5:
                taken.add(best)
                true += 1
            else:
                false += background_weight if iou.max() < 0.1 else 1
    objects = sum(len(image.boxes) for image in dataset.images)
    return 2 * true / (true + false + objects)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_f1_is_within_one_standard_error_of_the_highest_and_no_higher_threshold_has_it(seed):
    dataset, detections = example(seed)
    point = choose_operating_point(dataset, detections, ExportOptions())
    best = max(one.f1 for one in point.curve)
    thresholds = np.arange(0.0, 1.0, 0.05).round(2)
    plain = {(t, iou): plain_f1(dataset, detections, t, iou) for t in thresholds for iou in CLASS_AGNOSTIC_IOUS}
    assert best >= max(plain.values()) - 1e-4
    iou, limit = point.class_agnostic_iou, best - point.f1_standard_error
    own = plain_f1(dataset, detections, point.score_threshold, iou)
    (chosen,) = [one for one in point.curve if one.score_threshold == point.score_threshold]
    assert chosen.f1 == pytest.approx(own, abs=1e-4)
    assert own >= limit - 1e-4
    assert all(f1 < limit + 1e-4 for (t, other), f1 in plain.items() if t > point.score_threshold and other == iou)


def test_false_detections_on_the_background_count_by_the_density_of_scenes():
    dataset, detections = example(5)
    area_km2 = len(dataset) * SIZE[0] * SIZE[1] * (2 / 1000) ** 2
    density = 4 * len(dataset) / area_km2
    own, sparse = (
        choose_operating_point(dataset, detections, ExportOptions(gsd_m=2.0, scene_objects_per_km2=density / times))
        for times in (1, 3)
    )
    unknown = choose_operating_point(dataset, detections, ExportOptions(gsd_m=2.0))
    assert own.curve == unknown.curve
    for point in sparse.curve:
        plain = plain_f1(dataset, detections, point.score_threshold, sparse.class_agnostic_iou, background_weight=3)
        assert point.f1 == pytest.approx(plain, abs=1e-4)
    assert sparse.score_threshold >= own.score_threshold
    assert f"for scenes with {density / 3:g} objects per km²" in sparse.source


def test_the_standard_error_is_that_of_images_drawn_with_replacement():
    dataset, detections = example(4, images=20)
    point = choose_operating_point(dataset, detections, ExportOptions())
    best = max(point.curve, key=lambda one: one.f1)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(150):
        drawn = [dataset.images[index] for index in rng.integers(0, 20, 20)]
        again = replace(dataset, images=tuple(drawn))
        values.append(plain_f1(again, detections, best.score_threshold, point.class_agnostic_iou))
    assert point.f1_standard_error == pytest.approx(np.std(values), rel=0.3)


def test_thresholds_of_the_recipe_are_kept():
    dataset, detections = example(1)
    both = ExportOptions(scene_score_threshold=0.2, class_agnostic_iou=0.9)
    point = choose_operating_point(dataset, detections, both)
    assert (point.score_threshold, point.class_agnostic_iou) == (0.2, 0.9)
    point = choose_operating_point(dataset, detections, ExportOptions(scene_score_threshold=0.2))
    assert point.score_threshold == 0.2
    assert point.class_agnostic_iou < 1.0  # each object is found as two classes


def test_without_duplicates_nothing_more_is_suppressed():
    dataset, detections = example(2)
    own_class = {key: one.select(np.arange(3)) for key, one in detections.items()}
    assert choose_operating_point(dataset, own_class, ExportOptions()).class_agnostic_iou == 1.0


@pytest.mark.parametrize("found", ["nothing", "wrong class"])
def test_a_detector_that_finds_no_object_gets_the_defaults_and_the_reason(found):
    dataset, detections = example(3)
    wrong = {key: one.select(np.arange(6, 8)) for key, one in detections.items()}
    point = choose_operating_point(dataset, {} if found == "nothing" else wrong, ExportOptions())
    assert (point.score_threshold, point.class_agnostic_iou, point.curve) == (0.3, 0.8, ())
    assert "no object is found in 3 images of v.json" in point.source


def test_defaults_state_their_reason():
    point = default_operating_point(ExportOptions(scene_score_threshold=0.5), reason="v.json is missing")
    assert point.score_threshold == 0.5
    assert point.source == "not chosen: v.json is missing"
