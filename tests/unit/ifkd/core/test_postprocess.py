"""Candidates become detections."""

import numpy as np
import pytest

from ifkd.core.detections import Candidates, Detections
from ifkd.core.oriented_boxes import envelopes
from ifkd.core.postprocess import PostprocessConfig, one_of_each, postprocess


def candidates() -> Candidates:
    """Two tiles: overlapping boxes of one class, the same box of another class, a weak one; and an empty tile."""
    boxes = np.zeros((2, 5, 4), np.float32)
    boxes[0] = [[0, 0, 20, 20], [1, 0, 21, 20], [0, 0, 20, 20], [60, 60, 70, 70], [-5, 90, 10, 120]]
    scores = np.zeros((2, 5), np.float32)
    scores[0] = [0.8, 0.9, 0.7, 0.05, 0.3]
    labels = np.array([[0, 0, 1, 0, 2], [0] * 5])
    return Candidates(boxes, scores, labels)


def test_the_best_of_overlapping_boxes_of_a_class_is_kept() -> None:
    first, second = postprocess(candidates(), PostprocessConfig())
    assert first.scores.tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert first.labels.tolist() == [0, 1, 2]
    assert len(second) == 0


def test_a_score_equal_to_the_threshold_is_removed() -> None:
    lower = PostprocessConfig(score_threshold=float(np.nextafter(np.float32(0.05), np.float32(0))))
    assert len(postprocess(candidates(), lower)[0]) == 4


def test_the_best_max_detections_are_kept() -> None:
    first, _ = postprocess(candidates(), PostprocessConfig(max_detections=2))
    assert first.scores.tolist() == pytest.approx([0.9, 0.7])


def test_boxes_are_clipped_to_a_given_size() -> None:
    first, _ = postprocess(candidates(), PostprocessConfig(), size=(100, 100))
    assert first.boxes[2].tolist() == [0, 90, 10, 100]
    unclipped, _ = postprocess(candidates(), PostprocessConfig())
    assert unclipped.boxes[2].tolist() == [-5, 90, 10, 120]


def test_boxes_above_the_iou_threshold_are_removed() -> None:
    # The IoU of the two boxes of class 0 is 19/21 = 0.905.
    assert len(postprocess(candidates(), PostprocessConfig(iou_threshold=0.91))[0]) == 4
    assert len(postprocess(candidates(), PostprocessConfig(iou_threshold=0.90))[0]) == 3


def test_pieces_of_an_object_are_no_objects_of_their_own() -> None:
    boxes = np.array([[0, 0, 40, 10], [0, 0, 14, 10], [30, 0, 44, 10], [36, 0, 50, 10], [1, 0, 41, 10]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.8, 0.7, 0.4], np.float32), np.array([0, 1, 0, 0, 1])
    found = one_of_each(Detections(boxes, scores, labels), iou_threshold=0.5)
    # The second and third are most of all inside the first, the fourth is beside it, and the fifth is the first again.
    assert sorted(found.boxes[:, 0].tolist()) == [0, 36]
    assert len(one_of_each(Detections.empty(), iou_threshold=0.5)) == 0


def test_a_boat_beside_a_slanted_ship_is_no_piece_of_it() -> None:
    """Its upright box is inside that of the ship; its own box touches the ship nowhere."""
    oriented = np.array([[100, 100, 150, 20, 45], [80, 120, 50, 8, 45], [110, 110, 20, 10, 45]], np.float32)
    found = Detections(envelopes(oriented), np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64), oriented)
    assert one_of_each(found, iou_threshold=0.1).scores.tolist() == pytest.approx([0.9, 0.8])
