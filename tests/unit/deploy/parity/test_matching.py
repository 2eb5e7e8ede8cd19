import numpy as np
import pytest

from deploy.accuracy.image_detection import ImageResult
from deploy.parity.matching import PairingCriteria, greedy_pairs, match
from ifkd.core.detections import Detections

PAIRING = PairingCriteria(tie_iou=0.99, tie_score=1e-3)


def found(boxes, scores, labels):
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


def result(boxes, scores, labels, extra=None):
    kept = found(boxes, scores, labels)
    more = Detections.empty() if extra is None else found(*extra)
    return ImageResult(kept, Detections.concatenate([kept, more]))


def test_a_detection_lost_to_a_tie_is_recognized():
    a, b = [0, 0, 20, 20], [4, 0, 24, 20]
    ours = result([a], [0.9], [0], ([b], [0.8999], [0]))
    theirs = result([b], [0.8999], [0], ([a], [0.8995], [0]))
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {0: 2}
    assert matching.unmatched == []
    assert matching.pairs == []
    assert matching.matched_fraction() is None


def test_a_candidate_with_another_score_is_no_tie():
    a, b = [0, 0, 20, 20], [4, 0, 24, 20]
    ours = result([a], [0.9], [0], ([b], [0.89], [0]))
    theirs = result([b], [0.9], [0], ([a], [0.7], [0]))  # the candidate is there, with another score
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {}
    assert len(matching.pairs) == 1
    assert matching.pairs[0].iou == pytest.approx(320 / 480)


def test_a_detection_at_the_threshold_is_a_tie():
    ours = result([[0, 0, 9, 9]], [0.0501], [2])
    theirs = ImageResult(Detections.empty(), found([[0, 0, 9, 9]], [0.0499], [2]))
    matching = match({1: ours}, {1: theirs}, PAIRING)
    assert matching.tied_count == {2: 1}
    assert matching.unmatched == []


def test_pairs_are_one_to_one_and_best_first():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], np.float32)
    others = np.array([[1, 0, 11, 10], [2, 0, 12, 10], [50, 50, 60, 60]], np.float32)
    ones = np.ones(3, np.float32)
    assert sorted(greedy_pairs(boxes, others, ones[:2], ones, min_iou=0.5)) == [(0, 0), (1, 1)]


def test_equal_boxes_pair_by_score():
    boxes = np.array([[0, 0, 9, 9]] * 2, np.float32)
    pairs = greedy_pairs(boxes, boxes, np.array([0.9, 0.3]), np.array([0.31, 0.88]), min_iou=0.5)
    assert sorted(pairs) == [(0, 1), (1, 0)]


def test_classes_never_pair_with_each_other():
    matching = match({1: result([[0, 0, 9, 9]], [0.9], [0])}, {1: result([[0, 0, 9, 9]], [0.9], [1])}, PAIRING)
    assert matching.pairs == []
    assert matching.matched_fraction() == 0.0
    assert [(one.label, one.changed_to) for one in matching.unmatched] == [(0, 1), (1, 0)]
    assert len(matching.class_changes) == 1
