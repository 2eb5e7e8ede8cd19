"""Geometry and order of detections."""

import numpy as np
import pytest

from ifkd.core.detections import Candidates, Detections, box_areas, pairwise_iou
from ifkd.core.oriented_boxes import envelopes
from ifkd.core.postprocess import nms


def some() -> Detections:
    return Detections(
        np.array([[0, 0, 10, 10], [5, 5, 20, 30], [-4, 2, 3, 9]], np.float32),
        np.array([0.5, 0.9, 0.5], np.float32),
        np.array([1, 0, 0], np.int64),
    )


def test_empty_detections_have_shapes_and_types() -> None:
    empty = Detections.empty()
    assert (len(empty), empty.boxes.shape, empty.boxes.dtype, empty.labels.dtype) == (0, (0, 4), np.float32, np.int64)
    assert len(Detections.concatenate([])) == 0
    assert len(nms(empty, iou_threshold=0.5)) == 0
    assert len(empty.clipped((10, 10)).in_canonical_order()) == 0


def test_parts_are_concatenated_in_order() -> None:
    joined = Detections.concatenate([some(), Detections.empty(), some().select(np.array([1]))])
    assert joined.scores.tolist() == pytest.approx([0.5, 0.9, 0.5, 0.9])
    assert joined.boxes[3].tolist() == [5, 5, 20, 30]


def test_select_accepts_indices_and_masks() -> None:
    assert some().select(np.array([2, 0])).labels.tolist() == [0, 1]
    assert some().select(np.array([True, False, True])).labels.tolist() == [1, 0]


def test_translation_and_resizing() -> None:
    moved = some().translated(dx=100.0, dy=-2.5)
    assert moved.boxes[0].tolist() == [100, -2.5, 110, 7.5]
    assert some().resized((30, 40), (15, 10)).boxes[1].tolist() == [1.25, 2.5, 5, 15]
    assert moved.boxes.dtype == some().resized((30, 40), (7, 9)).boxes.dtype == np.float32


def test_clipping_removes_boxes_of_zero_area() -> None:
    cut = some().translated(dx=-1.0).clipped((8, 12))
    assert cut.boxes.tolist() == [[0, 0, 9, 8], [4, 5, 12, 8], [0, 2, 2, 8]]
    assert len(some().translated(dx=-3.0).clipped((30, 30))) == 2
    assert some().boxes[2, 0] == -4  # the original is unchanged


def test_canonical_order_is_unique() -> None:
    random = np.random.default_rng(0)
    many = Detections(
        random.integers(0, 3, (40, 4)).astype(np.float32),
        random.choice([0.25, 0.5], 40).astype(np.float32),
        random.integers(0, 2, 40),
    )
    ordered = many.in_canonical_order()
    again = many.select(random.permutation(40)).in_canonical_order()
    np.testing.assert_array_equal(ordered.boxes, again.boxes)
    assert (np.diff(ordered.scores) <= 0).all()


def test_iou_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 0, 0], [20, 20, 30, 30]], np.float32)
    others = np.array([[0, 0, 10, 5], [5, 0, 15, 10], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(pairwise_iou(boxes, others), [[0.5, 1 / 3, 0], [0, 0, 0], [0, 0, 0]])


def test_areas_of_boxes_with_a_negative_side_are_zero() -> None:
    boxes = np.array([[0, 0, 10, 5], [3, 3, 3, 9], [5, 5, 1, 9], [5, 5, 1, 1]], np.float32)
    assert box_areas(boxes).tolist() == [50, 0, 0, 0]
    assert box_areas(boxes).dtype == np.float32


def test_inconsistent_shapes_are_refused() -> None:
    assert len(Candidates(np.zeros((2, 5, 4)), np.zeros((2, 5)), np.zeros((2, 5), np.int64))) == 2
    with pytest.raises(AssertionError):
        Candidates(np.zeros((2, 5, 4)), np.zeros((2, 4)), np.zeros((2, 5), np.int64))
    with pytest.raises(AssertionError):
        Detections(np.zeros((3, 4)), np.zeros(2), np.zeros(3, np.int64))


def oriented() -> Detections:
    boxes = np.array([[30, 40, 20, 6, 30], [80, 20, 9, 9, 45], [10, 90, 30, 10, 170], [50, 50, 8, 4, 0]], np.float32)
    return Detections(
        envelopes(boxes), np.array([0.5, 0.9, 0.1, 0.7], np.float32), np.array([1, 0, 1, 0], np.int64), boxes
    )


def test_detections_carry_their_oriented_boxes() -> None:
    moved = oriented().translated(dx=100.0, dy=50.0).resized((400, 400), (200, 200))
    picked = Detections.concatenate([Detections.empty(), moved.select(np.array([3])), Detections.empty(oriented=True)])
    assert len(picked) == 1
    for found in (moved, moved.in_canonical_order(), picked):
        assert found.oriented is not None
        np.testing.assert_allclose(envelopes(found.oriented), found.boxes, atol=1e-4)
    with pytest.raises(AssertionError, match="upright"):
        Detections.concatenate([some(), oriented()])


def test_oriented_boxes_are_left_out_with_their_boxes_but_not_clipped() -> None:
    clipped = oriented().clipped((60, 60))
    assert clipped.oriented is not None
    assert clipped.oriented.tolist() == [[30, 40, 20, 6, 30], [50, 50, 8, 4, 0]]
    assert oriented().clipped((41, 31)).boxes[0, 2:].tolist() == [31, 41]


def test_boxes_that_differ_in_their_angle_only_have_one_order() -> None:
    boxes = np.array([[5, 5, 4, 2, 150], [5, 5, 4, 2, 30]], np.float32)
    twins = Detections(envelopes(boxes), np.full(2, 0.5, np.float32), np.zeros(2, np.int64), boxes)
    twins = twins.select(np.array([0, 1]))
    twins.boxes[:] = twins.boxes[0]
    orders = [twins.select(np.array(order)).in_canonical_order().oriented for order in ([0, 1], [1, 0])]
    assert np.array_equal(*orders)


def test_candidates_carry_their_oriented_boxes() -> None:
    one = oriented()
    batch = Candidates(*(getattr(one, name)[None] for name in ("boxes", "scores", "labels", "oriented")))
    both = Candidates.concatenate([batch, batch])
    tiles = [*both.of_each_tile()]
    assert len(both) == len(tiles) == 2
    assert len(both.select(slice(1, 2))) == 1
    for found in (*tiles, *both.select(slice(1, 2)).of_each_tile()):
        assert np.array_equal(found.oriented, one.oriented)
    assert next(Candidates(batch.boxes, batch.scores, batch.labels).of_each_tile()).oriented is None
