"""Areas that oriented boxes have in common, against shapely."""

import numpy as np
import shapely

from ifkd.core.detections import Array, box_areas, pairwise_intersection, pairwise_iou
from ifkd.core.oriented_boxes import PAIRS_AT_ONCE, canonical, corners, from_upright, paired_intersection

RNG = np.random.default_rng(3)


def some(count: int, *, whole: bool = False) -> Array:
    sides = np.sort(RNG.uniform(1, 90, (count, 2)))[:, ::-1]
    boxes = np.column_stack([RNG.uniform(60_000, 60_100, (count, 2)), sides, RNG.uniform(0, 180, count)])
    if whole:  # shared edges and corners
        boxes = np.column_stack([np.rint(boxes[:, :4] / 8) * 8 + [0, 0, 8, 8], np.rint(boxes[:, 4] / 45) * 45])
    return canonical(boxes)


def iou_by_shapely(boxes: Array, others: Array) -> Array:
    """Return the IoU of pairs; coordinates near 0, where shapely is more exact."""
    origin = boxes[:, :1], boxes[:, 1:2]
    polygons = []
    for one in (boxes, others):
        turn = np.deg2rad(one[:, 4:].astype(float))
        x, y = (one[:, axis : axis + 1].astype(float) - origin[axis] for axis in (0, 1))
        along, across = one[:, 2:3] / 2 * [1, 1, -1, -1], one[:, 3:4] / 2 * [1, -1, -1, 1]
        points = x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn)
        polygons.append(shapely.polygons(np.stack(points, axis=2)))
    return shapely.area(shapely.intersection(*polygons)) / shapely.area(shapely.union(*polygons))


def test_pairs_equal_shapely() -> None:
    count = PAIRS_AT_ONCE + 500
    one = np.concatenate([some(count), some(2000, whole=True)])
    other = np.concatenate([some(count), some(2000, whole=True)])
    other[:500] = one[:500]  # equal boxes
    other[500:1000, 4] = one[500:1000, 4]  # parallel ones
    shared = paired_intersection(one, other)
    iou = shared / (box_areas(one) + box_areas(other) - shared)
    np.testing.assert_allclose(iou, iou_by_shapely(one, other), atol=1e-9)
    assert (iou == 0).sum() > 1000
    np.testing.assert_allclose(iou[:500], 1, atol=1e-12)
    np.testing.assert_allclose(paired_intersection(other, one), shared, rtol=1e-9, atol=1e-9)


def test_boxes_that_only_touch_share_nothing() -> None:
    turned = canonical(np.array([[0, 0, 10, 4, 30.0]]))
    beside = turned + np.array([4 * -np.sin(np.pi / 6), 4 * np.cos(np.pi / 6), 0, 0, 0])
    assert paired_intersection(turned, beside)[0] < 1e-5  # as float32 rounds
    assert paired_intersection(turned, turned + np.array([40.0, 0, 0, 0, 0])).tolist() == [0.0]


def test_each_with_each_equals_pairs() -> None:
    boxes, others = some(30), some(40)
    rows, columns = (index.ravel() for index in np.indices((30, 40)))
    expected = paired_intersection(boxes[rows], others[columns]).reshape(30, 40)
    np.testing.assert_allclose(pairwise_intersection(boxes, others), expected, atol=1e-3)  # float32 envelopes
    assert pairwise_iou(boxes, others[:0]).shape == (30, 0)


def test_upright_boxes_as_oriented_ones() -> None:
    corner = RNG.uniform(0, 50, (60, 2))
    boxes = np.column_stack([corner, corner + RNG.uniform(1, 40, (60, 2))]).astype(np.float32)
    turned = from_upright(boxes)
    assert set(turned[:, 4].tolist()) == {0.0, 90.0}
    around = corners(turned)
    np.testing.assert_allclose(around.min(axis=1), boxes[:, :2], atol=1e-4)
    np.testing.assert_allclose(pairwise_iou(turned, turned), pairwise_iou(boxes, boxes), atol=1e-5)
