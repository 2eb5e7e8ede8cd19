"""Oriented boxes: form, corners and the smallest rectangle."""

import numpy as np
import pytest
import shapely
import shapely.affinity

from ifkd.core.detections import Array, resize_boxes
from ifkd.core.oriented_boxes import canonical, corner_distances, corners, envelopes, from_corners, resize, translate

RNG = np.random.default_rng(7)


def some(count: int = 200) -> Array:
    center, sides = RNG.uniform(-500, 500, (count, 2)), RNG.uniform(1, 80, (count, 2))
    return canonical(np.concatenate([center, sides, RNG.uniform(-400, 400, (count, 1))], axis=1))


def test_the_long_side_comes_first_and_the_angle_is_an_axis() -> None:
    turned = [[5, 6, 2, 8, -30], [5, 6, 8, 2, 240], [1, 1, 4, 4, 135], [0, 0, 2, 1, -1e-6], [0, 0, 2, 1, 180]]
    expected = [[5, 6, 8, 2, 60], [5, 6, 8, 2, 60], [1, 1, 4, 4, 45], [0, 0, 2, 1, 0], [0, 0, 2, 1, 0]]
    found = canonical(np.array(turned, np.float64))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_swapped_sides_and_a_quarter_turn_are_the_same_box() -> None:
    boxes = some()
    swapped = boxes[:, [0, 1, 3, 2, 4]] + np.array([0, 0, 0, 0, 90], np.float32)
    np.testing.assert_allclose(canonical(swapped), boxes, atol=1e-4)


def test_corners_are_clockwise_on_the_screen_from_the_top_left() -> None:
    flat, down = corners(np.array([[10, 20, 8, 2, 0], [10, 20, 8, 2, 90]], np.float32))
    assert flat.tolist() == [[6, 19], [14, 19], [14, 21], [6, 21]]
    np.testing.assert_allclose(down, [[11, 16], [11, 24], [9, 24], [9, 16]], atol=1e-5)


def test_corners_are_those_of_a_polygon_that_shapely_turns() -> None:
    boxes = some(20)
    for box, points in zip(boxes, corners(boxes), strict=True):
        x, y, length, width, angle = box.tolist()
        flat = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
        turned = shapely.affinity.rotate(flat, angle, origin=(x, y))
        assert turned.symmetric_difference(shapely.Polygon(points)).area < 1e-2


def test_the_envelope_of_a_box_at_0_is_its_upright_box() -> None:
    upright = np.array([[1, 2, 11, 5], [3, 3, 7, 7]], np.float32)
    flat = np.array([[6, 3.5, 10, 3, 0], [5, 5, 4, 4, 0]], np.float32)
    assert envelopes(flat).tolist() == upright.tolist()


def test_corners_in_any_order_return_to_their_box() -> None:
    boxes = some()
    orders = RNG.permuted(np.tile(np.arange(4), (len(boxes), 1)), axis=1)
    shuffled = np.take_along_axis(corners(boxes), orders[:, :, None], axis=1)
    assert corner_distances(from_corners(shuffled), boxes).max() < 2e-2


def test_the_rectangle_around_four_points_is_the_smallest() -> None:
    points = RNG.uniform(-50, 50, (100, 4, 2))
    for box, four in zip(from_corners(points), points, strict=True):
        smallest = shapely.minimum_rotated_rectangle(shapely.MultiPoint(four))
        assert box[2] * box[3] == pytest.approx(smallest.area, rel=1e-4)
        around = shapely.Polygon(corners(box[None])[0]).buffer(1e-3)
        assert around.covers(shapely.MultiPoint(four))


def test_points_on_a_line_and_equal_points_give_a_box_without_width() -> None:
    line, point = from_corners(np.array([[[0, 0], [3, 3], [1, 1], [2, 2]], [[5, 5]] * 4], np.float64))
    np.testing.assert_allclose(line, [1.5, 1.5, np.sqrt(18), 0, 45], atol=1e-4)
    assert point[:4].tolist() == [5, 5, 0, 0]


def test_boxes_are_moved_and_resized() -> None:
    boxes = some()
    np.testing.assert_allclose(
        corners(translate(boxes, dx=3.0, dy=-7.5)), corners(boxes) + np.array([3, -7.5]), atol=1e-4
    )
    np.testing.assert_allclose(corners(resize(boxes, (10, 20), (5, 10))), corners(boxes) / 2, atol=1e-4)


def test_boxes_at_0_and_90_are_resized_as_upright_boxes() -> None:
    boxes = np.array([[30, 40, 20, 6, 0], [30, 40, 20, 6, 90]], np.float32)
    resized = resize(boxes, (100, 100), (50, 200))
    np.testing.assert_allclose(envelopes(resized), resize_boxes(envelopes(boxes), (100, 100), (50, 200)), atol=1e-4)


def test_the_distance_of_corners_does_not_jump_where_the_angle_does() -> None:
    boxes = np.array([[5, 5, 8, 2, 179], [5, 5, 8, 2, 0], [5, 5, 4, 4, 89], [5, 5, 4, 4, 0]], np.float32)
    others = np.array([[5, 5, 8, 2, 1], [9, 8, 8, 2, 0], [5, 5, 4, 4, 0], [5, 5, 4, 4, 45]], np.float32)
    radius, square = np.sqrt(17), np.sqrt(8)
    expected = [
        2 * radius * np.sin(np.radians(1)),
        5,
        2 * square * np.sin(np.radians(0.5)),
        2 * square * np.sin(np.pi / 8),
    ]
    np.testing.assert_allclose(corner_distances(boxes, others), expected, rtol=1e-4)


def test_no_boxes_are_no_boxes() -> None:
    none = np.zeros((0, 5), np.float32)
    for result in (canonical(none), from_corners(corners(none)), resize(none, (1, 2), (2, 3)), translate(none)):
        assert result.shape == (0, 5)
    assert envelopes(none).shape == (0, 4)
