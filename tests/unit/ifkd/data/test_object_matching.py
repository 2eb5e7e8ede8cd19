"""Matches of detections with objects, against pycocotools' and a plain slow version."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ifkd.core.detections import Detections
from ifkd.data.coco import CocoDataset, LabeledImage, coco_results
from ifkd.data.object_matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, match_objects

SIZE = (200, 200)


def boxes_of(rng, n):
    corner, extent = rng.uniform(0, 120, (n, 2)), rng.uniform(10, 70, (n, 2))
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


def example(seed, *, ignore=0.0):
    rng = np.random.default_rng(seed)
    objects, found = boxes_of(rng, 8), boxes_of(rng, 20)
    found[:8] = objects + rng.uniform(-8, 8, objects.shape)
    scores = np.sort(rng.uniform(0, 1, 20))[::-1].astype(np.float32)
    detections = Detections(found[rng.permutation(20)], scores, rng.integers(0, 2, 20))
    labels, ignored = rng.integers(0, 2, 8), rng.uniform(0, 1, 8) < ignore
    return detections, LabeledImage(1, Path("a.png"), SIZE, objects, labels, "a", ignored)


@given(st.integers(0, 10_000))
def test_true_positives_are_those_of_pycocotools(seed):
    detections, image = example(seed)
    truth = COCO()
    truth.dataset = CocoDataset(Path("t.json"), ("ship", "tug"), (1, 2), (image,)).to_coco()
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(coco_results([(1, detections)], (1, 2))), "bbox")
    evaluator.params.iouThrs = np.array([0.5])
    evaluator.evaluate()
    expected = 0
    for result in evaluator.evalImgs:
        if result is not None and result["aRng"] == evaluator.params.areaRng[0]:
            expected += int((result["dtMatches"][0] > 0).sum())
    assert (match_objects(detections, image) == TRUE_POSITIVE).sum() == expected


@given(st.integers(0, 10_000), st.integers(0, 20))
def test_lower_scores_change_nothing(seed, kept):
    detections, image = example(seed, ignore=0.3)
    complete = match_objects(detections, image)
    assert match_objects(detections.select(np.arange(kept)), image).tolist() == complete[:kept].tolist()


@given(st.integers(0, 10_000))
def test_a_detection_without_object_is_ignored_where_half_of_it_is_in_an_ignored_region(seed):
    detections, image = example(seed, ignore=0.6)
    regions = image.boxes[image.ignore]
    matches = match_objects(detections, image)
    for box, label, match in zip(detections.boxes, detections.labels, matches, strict=True):
        of_class = regions[image.labels[image.ignore] == label]
        wh = np.concatenate([of_class[:, :2], of_class[:, 2:] - of_class[:, :2]], axis=1).astype(float)
        own = np.concatenate([box[:2], box[2:] - box[:2]])[None].astype(float)
        inside = mask.iou(own, wh, [1] * len(wh)).max() if len(wh) else 0.0  # crowd: intersection over own area
        if match != TRUE_POSITIVE and abs(inside - 0.5) > 1e-6:
            assert match == (IGNORED if inside > 0.5 else FALSE_POSITIVE)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_nothing(chunk, monkeypatch):
    detections, image = example(5, ignore=0.3)
    complete = match_objects(detections, image)
    monkeypatch.setattr("ifkd.data.object_matching.CHUNK", chunk)
    assert match_objects(detections, image).tolist() == complete.tolist()


def test_nothing_detected():
    _, image = example(1)
    assert match_objects(Detections.empty(), image).tolist() == []
