"""The laws of suppressing and merging oriented boxes, against slow versions with shapely's polygons."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from test_merge_laws import GRID, METHODS, SIZE, oriented_world, rows, rows_of, seen_by_tiles, slow_merge, worlds
from test_streaming_merge_laws import streamed

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Detections
from ifkd.core.oriented_boxes import canonical, corners, envelopes, from_corners, from_upright
from ifkd.core.postprocess import nms
from ifkd.core.tiling import TileGrid

rules = st.builds(
    MergeSettings,
    method=st.sampled_from(METHODS),
    metric=st.sampled_from(["iou", "ios"]),
    threshold=st.just(0.4871),  # no simple ratio, because rounding decides about those
    class_agnostic_iou=st.sampled_from([0.7123, 1.0]),
)


@st.composite
def harbors(draw):
    """Ships of two classes, many side by side, with scores that differ."""
    n = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    angle = rng.choice([rng.uniform(0, 180), 0.0, 45.0]) + rng.normal(0, 5, n) * rng.integers(0, 2)
    sides = rng.uniform([10, 2], [30, 9], (n, 2))
    oriented = canonical(np.column_stack([rng.uniform(0, 50, (n, 2)), sides, angle]))
    scores = rng.permutation(n) / max(n, 1)
    return Detections(envelopes(oriented), scores.astype(np.float32), rng.integers(0, 2, n), oriented)


def slow_nms(found, threshold):
    polygons = shapely.polygons(corners(found.oriented).astype(float))
    kept = []
    for i in np.argsort(-found.scores):
        same = [j for j in kept if found.labels[j] == found.labels[i]]
        both = [polygons[i].intersection(polygons[j]).area for j in same]
        union = [polygons[i].union(polygons[j]).area for j in same]
        if all(one <= threshold * other for one, other in zip(both, union, strict=True)):
            kept.append(i)
    return found.scores[kept].tolist()


def quarter_turn(found):
    """Turn detections by 90 degrees around the origin, clockwise on the screen."""
    x, y, length, width, angle = found.oriented.T
    oriented = canonical(np.column_stack([-y, x, length, width, angle + np.float32(90)]))
    return Detections(envelopes(oriented), found.scores, found.labels, oriented)


@given(harbors(), st.sampled_from([0.0, 0.1, 0.3137, 0.5, 0.77]))
@settings(deadline=None)
def test_suppression_equals_a_plain_loop_over_polygons(found, threshold):
    assert nms(found, iou_threshold=threshold).scores.tolist() == slow_nms(found, threshold)


@given(harbors(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_suppression_of_equal_scores_does_not_depend_on_the_order(found, random):
    tied = Detections(found.boxes, np.full(len(found), 0.5, np.float32), found.labels, found.oriented)
    order = list(range(len(found)))
    random.shuffle(order)
    one, other = nms(tied, iou_threshold=0.3), nms(tied.select(np.array(order, np.int64)), iou_threshold=0.3)
    np.testing.assert_array_equal(one.oriented, other.oriented)


@given(harbors())
@settings(deadline=None)
def test_suppression_and_merging_commute_with_a_quarter_turn(found):
    assert nms(quarter_turn(found), iou_threshold=0.3137).scores.tolist() == slow_nms(found, 0.3137)
    (window,) = TileGrid((99, 99), (99, 99), 20)
    rule = MergeSettings(threshold=0.3137, class_agnostic_iou=0.6173)
    one, other = (
        merge(TileDetections.of_tile(each, 0, window=window, size=(99, 99)), rule)
        for each in (found, quarter_turn(found))
    )
    assert one.detections.scores.tolist() == other.detections.scores.tolist()


@given(worlds, st.sampled_from([0.3137, 0.4871]), st.sampled_from(["iou", "ios"]))
@settings(deadline=None, max_examples=50)
def test_boxes_at_0_degrees_equal_the_upright_path(world, threshold, metric):
    found = seen_by_tiles(world)
    d = found.detections
    turned = Detections(d.boxes, d.scores, d.labels, from_upright(d.boxes))
    upright = nms(d, iou_threshold=threshold)
    np.testing.assert_array_equal(nms(turned, iou_threshold=threshold).boxes, upright.boxes)
    for method, bounds in (("nms", found.bounds), ("border", np.full_like(found.bounds, np.inf))):
        rule = MergeSettings(method=method, threshold=threshold, metric=metric)
        upright, merged = (merge(TileDetections(one, found.tiles, bounds), rule) for one in (d, turned))
        assert [row[:11] for row in rows(merged)] == rows(upright)


@given(worlds, rules)
@settings(deadline=None, max_examples=100)
def test_merge_equals_the_slow_version(world, rule):
    found = oriented_world(world)
    merged, slow = rows(merge(found, rule)), rows_of(slow_merge(found, rule))
    assert [row[:11] for row in merged] == [row[:11] for row in slow]
    polygons = [shapely.polygons(corners(np.array([row[11:] for row in one]).reshape(-1, 5))) for one in (merged, slow)]
    assert all(shapely.area(shapely.symmetric_difference(*polygons)) < 0.05)


@given(worlds, rules, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_merge_does_not_depend_on_the_order_and_streams(world, rule, random):
    found = oriented_world(world)
    shuffled = list(range(len(found)))
    random.shuffle(shuffled)
    merged = rows(merge(found, rule))
    assert rows(merge(found.select(np.array(shuffled, np.int64)), rule)) == merged
    assert rows(streamed(found, rule, GRID)[0]) == merged


@given(worlds, st.sampled_from(["iou", "ios"]), st.sampled_from(["border", "nms"]))
@settings(deadline=None, max_examples=60)
def test_merging_twice_changes_nothing(world, metric, method):
    rule = MergeSettings(method=method, metric=metric, threshold=0.4871)
    once = merge(oriented_world(world), rule)
    assert rows(merge(once, rule)) == rows(once)


@pytest.mark.parametrize("center", [(54, 32), (98, 32), (32, 54)])
@pytest.mark.parametrize("sides", [(48, 48), (48, 45), (52, 40), (52, 30), (52, 8)])
def test_an_object_larger_than_the_overlap_becomes_one_box_however_wide_it_is(center, sides):
    """Each tile sees a part that is longer in another direction than the object."""
    true = canonical(np.array([[*center, *(sides if center[1] == 32 else sides[::-1]), 0.0]]))
    parts = []
    for index, window in enumerate(GRID):
        cut = np.array([window.left, window.top, window.right, window.bottom])
        box = envelopes(true)[0]
        box = np.concatenate([np.maximum(box[:2], cut[:2]), np.minimum(box[2:], cut[2:])]).astype(np.float32)
        if (box[2:] - box[:2] > 4).all():
            oriented = from_upright(box[None])
            found = Detections(box[None], np.full(1, 0.9, np.float32), np.zeros(1, np.int64), oriented)
            parts.append(TileDetections.of_tile(found, index, window=window, size=SIZE))
    assert len(parts) > 1
    merged = merge(TileDetections.concatenate(parts), MergeSettings()).detections
    assert len(merged) == 1
    np.testing.assert_allclose(envelopes(merged.oriented), envelopes(true), atol=1e-3)


@pytest.mark.parametrize("angle", [10.0, 30.0, 45.0, 80.0, 123.0])
def test_a_ship_longer_than_the_overlap_becomes_one_box(angle):
    ship = canonical(np.array([[85, 75, 70, 8, angle]]))
    polygon = shapely.Polygon(corners(ship)[0].astype(float))
    parts = []
    for index, window in enumerate(GRID):
        part = polygon.intersection(shapely.box(window.left, window.top, window.right, window.bottom))
        if part.area < 8:
            continue
        seen = shapely.get_coordinates(shapely.oriented_envelope(part))[:4]
        oriented = from_corners(seen[None])
        found = Detections(envelopes(oriented), np.full(1, 0.9, np.float32), np.zeros(1, np.int64), oriented)
        left, top = float(window.left), float(window.top)
        found = found.translated(dx=-left, dy=-top).clipped((64, 64)).translated(dx=left, dy=top)
        parts.append(TileDetections.of_tile(found, index, window=window, size=SIZE))
    merged = merge(TileDetections.concatenate(parts), MergeSettings()).detections
    assert len(parts) > 1
    assert len(merged) == 1
    both = polygon.intersection(shapely.Polygon(corners(merged.oriented)[0].astype(float))).area
    assert both > 0.9 * polygon.area
    assert both > 0.9 * merged.oriented[0, 2] * merged.oriented[0, 3]
