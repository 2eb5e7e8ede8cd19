"""The laws of merging, against a slow plain version that compares every box with every other."""

from itertools import combinations

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.merge.overlaps import overlapping_pairs, pairs_between
from ifkd.core.detections import Detections, pairwise_iou
from ifkd.core.oriented_boxes import canonical, corners, envelopes, from_corners, from_upright
from ifkd.core.postprocess import nms
from ifkd.core.tiling import TileGrid

SIZE = (150, 170)
GRID = TileGrid(SIZE, (64, 64), 20)
METHODS = ("border", "nms", "nmm", "greedy_nmm")
coordinate = st.integers(0, 170)


@st.composite
def objects(draw):
    """A few true boxes of a scene, some larger than the overlap, some close together."""
    n = draw(st.integers(0, 7))
    boxes = []
    for _ in range(n):
        x, y = draw(st.integers(0, 160)), draw(st.integers(0, 140))
        w, h = draw(st.integers(3, 50)), draw(st.integers(3, 50))
        boxes.append([x, y, min(x + w, 170), min(y + h, 150)])
    return np.array(boxes, np.float32).reshape(-1, 4), draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))


worlds = st.tuples(objects(), st.integers(0, 2**32 - 1))


def seen_by_tiles(world):
    """What tiles would see of true objects, each with noise, a score of its own, and now and then not at all."""
    (boxes, labels), seed = world
    rng = np.random.default_rng(seed)
    parts = []
    for index, window in enumerate(GRID):
        low, high = [window.left, window.top], [window.right, window.bottom]
        seen, scores, kinds = [], [], []
        for box, label in zip(boxes, labels, strict=True):
            cut = np.concatenate([np.maximum(box[:2], low), np.minimum(box[2:], high)])
            if (cut[2:] - cut[:2] < 2).any() or rng.random() < 0.1:
                continue
            noisy = cut + rng.choice([0, 0, 0, -1, 1, 3], 4)
            noisy = np.concatenate([np.clip(noisy[:2], low, high), np.clip(noisy[2:], low, high)])
            if (noisy[2:] <= noisy[:2]).any():
                continue
            seen.append(noisy)
            scores.append(rng.choice([0.3, 0.5, 0.5, 0.7, 0.9]))
            kinds.append(label)
        found = Detections(
            np.array(seen, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(kinds, np.int64)
        )
        parts.append(TileDetections.of_tile(found, index, window=window, size=SIZE))
    return TileDetections.concatenate(parts)


def oriented_world(world):
    """The objects of a world, turned, as tiles would see them: of a cut object, the smallest box around its part."""
    (boxes, labels), seed = world
    rng = np.random.default_rng(seed)
    true = from_upright(boxes)
    true[:, 4] = rng.uniform(0, 180, len(true))
    true = canonical(true)
    parts = []
    for index, window in enumerate(GRID):
        tile = shapely.box(window.left, window.top, window.right, window.bottom)
        seen, scores, kinds = [], [], []
        for box, label in zip(true, labels, strict=True):
            noisy = canonical(box[None] + rng.normal(0, [1, 1, 0.5, 0.2, 3]))
            noisy[:, 2:4] = noisy[:, 2:4].clip(1.5)
            part = shapely.intersection(shapely.Polygon(corners(noisy)[0].astype(float)), tile)
            if part.area < 2 or rng.random() < 0.1:
                continue
            if part.area < 0.999 * noisy[0, 2] * noisy[0, 3]:
                around = shapely.get_coordinates(shapely.oriented_envelope(part))[:4]
                noisy = from_corners(around[None])
            seen.append(noisy[0])
            scores.append(rng.choice([0.3, 0.5, 0.5, 0.7, 0.9]))
            kinds.append(label)
        oriented = np.array(seen, np.float32).reshape(-1, 5)
        found = Detections(envelopes(oriented), np.array(scores, np.float32), np.array(kinds, np.int64), oriented)
        found = found.translated(dx=-float(window.left), dy=-float(window.top)).clipped((64, 64))
        found = found.translated(dx=float(window.left), dy=float(window.top)).clipped(SIZE)
        parts.append(TileDetections.of_tile(found, index, window=window, size=SIZE))
    return TileDetections.concatenate(parts)


any_settings = st.builds(
    MergeSettings,
    method=st.sampled_from(METHODS),
    metric=st.sampled_from(["iou", "ios"]),
    threshold=st.just(0.5),
    class_agnostic_iou=st.sampled_from([0.7, 1.0]),
)


def rows(found):
    d = found.detections
    oriented = np.zeros((len(d), 0)) if d.oriented is None else d.oriented
    columns = (d.boxes, d.scores, d.labels, found.tiles, found.bounds, oriented)
    return [
        (*map(float, box), float(score), int(label), int(tile), *map(float, bounds), *map(float, turned))
        for box, score, label, tile, bounds, turned in zip(*columns, strict=True)
    ]


# ---- the slow version: plain Python on lists of dicts, written from the docstring of deploy.scene.merge.merge ----


def slow_merge(found, rule):
    kept = []
    for thing in slow_merge_within_classes(found, rule):
        if all(iou(thing, other) <= rule.class_agnostic_iou for other in kept):
            kept.append(thing)
    return kept


def iou(a, b):
    both = common(a, b)
    return both / (area(a) + area(b) - both)


def slow_merge_within_classes(found, rule):
    things = sorted((thing_of(*row) for row in rows(found)), key=order_key)
    if rule.method == "nms":
        return slow_nms(things, [], rule)
    if rule.method == "greedy_nmm":
        free, out = things, []
        while free:
            group = [free[0], *(other for other in free[1:] if same(free[0], other, rule))]
            free = [other for other in free if not any(other is one for one in group)]
            out.append(hull(group))
        return sorted(out, key=order_key)
    if rule.method == "nmm":
        groups = []
        for thing in things:
            near = [group for group in groups if any(same(thing, other, rule) for other in group)]
            groups = [group for group in groups if not any(group is one for one in near)]
            groups.append(sorted([thing, *(other for group in near for other in group)], key=order_key))
        return sorted((hull(group) for group in groups), key=order_key)
    whole = slow_nms([t for t in things if not is_piece(t, rule)], [], rule)
    pieces = [t for t in things if is_piece(t, rule) and not any(explains(w, t, rule) for w in whole)]
    joined = slow_join(pieces, rule)
    rest = slow_nms(sorted(joined, key=order_key), whole, rule)
    hulls = [t for t in rest if not is_piece(t, rule)]
    single = [t for t in rest if is_piece(t, rule) and not any(explains(w, t, rule) for w in hulls)]
    return sorted([*whole, *hulls, *single], key=order_key)


def thing_of(x1, y1, x2, y2, score, label, tile, *rest):
    bounds, oriented = rest[:4], rest[4:]
    thing = {"box": (x1, y1, x2, y2), "score": score, "label": label, "tile": tile, "bounds": bounds}
    return {**thing, "oriented": oriented, "shape": shape_of((x1, y1, x2, y2), oriented)}


def shape_of(box, oriented):
    """The polygon of an oriented box; an upright box stays a tuple, whose area is exact."""
    return shapely.Polygon(corners(np.array([oriented]))[0].astype(float)) if oriented else box


def order_key(t):
    x1, y1, x2, y2 = t["box"]
    turned = tuple(reversed(t["oriented"]))
    return (-t["score"], t["label"], x1, y1, x2, y2, turned, t["tile"], tuple(reversed(t["bounds"])))


def slow_nms(things, fixed, rule):
    kept = []
    for thing in things:
        if not any(same(other, thing, rule) for other in [*fixed, *kept]):
            kept.append(thing)
    return kept


def slow_join(pieces, rule):
    pairs = [
        (-agreement(a, b), i, j)
        for (i, a), (j, b) in combinations(enumerate(pieces), 2)
        if a["label"] == b["label"] and a["tile"] != b["tile"] and agreement(a, b) > rule.threshold
    ]
    groups = [{i} for i in range(len(pieces))]
    for _, i, j in sorted(pairs):
        one, other = (next(g for g in groups if k in g) for k in (i, j))
        if one is other or {pieces[k]["tile"] for k in one} & {pieces[k]["tile"] for k in other}:
            continue
        groups.remove(other)
        one |= other
    return [hull([pieces[k] for k in sorted(group)]) for group in groups]


def hull(group):
    if len(group) == 1:
        return group[0]
    boxes = [t["box"] for t in group]
    box = (
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )
    oriented = ()
    if group[0]["oriented"]:
        x, y, length, width, angle = max((t["oriented"] for t in group), key=lambda one: (one[2], one[3]))
        flat = [shapely.affinity.rotate(t["shape"], -angle, origin=(x, y)).bounds for t in group]
        low, high = np.min(flat, axis=0)[:2], np.max(flat, axis=0)[2:]
        if length >= 2 * width:  # a slender one keeps its width
            low[1], high[1] = y - width / 2, y + width / 2
        middle = shapely.affinity.rotate(shapely.Point((low + high) / 2), angle, origin=(x, y))
        oriented = tuple(canonical(np.array([[middle.x, middle.y, *(high - low), angle]]))[0].tolist())
    bounds = (-np.inf, -np.inf, np.inf, np.inf)
    return {**group[0], "box": box, "bounds": bounds, "oriented": oriented, "shape": shape_of(box, oriented)}


def area(thing):
    return area_of(thing["shape"])


def area_of(shape):
    if isinstance(shape, shapely.Geometry):
        return shape.area
    return max(0.0, shape[2] - shape[0]) * max(0.0, shape[3] - shape[1])


def common(a, b):
    return area_of(intersection(a["shape"], b["shape"]))


def intersection(a, b):
    if isinstance(a, shapely.Geometry):
        return a.intersection(b)
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def same(a, b, rule):
    both = common(a, b)
    whole = area(a) + area(b) - both if rule.metric == "iou" else min(area(a), area(b))
    return a["label"] == b["label"] and both > rule.threshold * whole


def is_piece(t, rule):
    return any(abs(side - edge) <= rule.edge_tolerance_px for side, edge in zip(t["box"], t["bounds"], strict=True))


def explains(whole, piece, rule):
    if same(whole, piece, rule):
        return True
    w = whole["box"]
    inside = area_of(intersection(w, piece["box"])) > rule.min_coverage * area_of(piece["box"])
    if piece["oriented"]:
        inside = inside and common(whole, piece) > 0.5 * rule.min_coverage * area(piece)
    if whole["tile"] == piece["tile"] or not inside:
        return False
    for side, (mine, edge) in enumerate(zip(piece["box"], piece["bounds"], strict=True)):
        if abs(mine - edge) <= rule.edge_tolerance_px:
            slack = rule.edge_tolerance_px + 0.1 * (w[2] - w[0] if side % 2 == 0 else w[3] - w[1])
            if (w[side] < edge - slack) if side > 1 else (w[side] > edge + slack):
                return False
    return True


def agreement(a, b):
    zone = [
        *(max(p, q) for p, q in zip(a["bounds"][:2], b["bounds"][:2], strict=True)),
        *(min(p, q) for p, q in zip(a["bounds"][2:], b["bounds"][2:], strict=True)),
    ]

    def seen(thing):
        box = intersection(thing["box"], zone)
        if not isinstance(thing["shape"], shapely.Geometry):
            return box
        return intersection(thing["shape"], shapely.box(*box) if area_of(box) > 0 else shapely.Polygon())

    one, other = seen(a), seen(b)
    both = area_of(intersection(one, other))
    union = area_of(one) + area_of(other) - both
    return both / union if union > 0 else 0.0


# ---- laws ----


@given(worlds, any_settings)
@settings(deadline=None, max_examples=150)
def test_merge_equals_the_slow_version(world, rule):
    found = seen_by_tiles(world)
    assert rows(merge(found, rule)) == rows_of(slow_merge(found, rule))


def rows_of(things):
    return [(*t["box"], t["score"], t["label"], t["tile"], *t["bounds"], *t["oriented"]) for t in things]


@given(worlds, any_settings, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_merge_does_not_depend_on_the_order(world, rule, random):
    found = seen_by_tiles(world)
    shuffled = list(range(len(found)))
    random.shuffle(shuffled)
    assert rows(merge(found.select(np.array(shuffled, np.int64)), rule)) == rows(merge(found, rule))


@given(worlds, st.sampled_from(["iou", "ios"]), st.sampled_from(["border", "nms"]))
@settings(deadline=None, max_examples=100)
def test_merging_twice_changes_nothing(world, metric, method):
    found = seen_by_tiles(world)
    rule = MergeSettings(method=method, metric=metric)
    once = merge(found, rule)
    assert rows(merge(once, rule)) == rows(once)


@given(objects(), st.sampled_from(["border", "nms"]), st.sampled_from([0.3, 0.5, 0.7]))
@settings(deadline=None, max_examples=60)
def test_one_tile_is_plain_suppression(true, method, threshold):
    boxes, labels = true
    found = Detections(boxes, np.linspace(0.9, 0.3, len(boxes), dtype=np.float32), np.array(labels, np.int64))
    (window,) = TileGrid(SIZE, (200, 200), 20)
    tiled = TileDetections.of_tile(found, 0, window=window, size=SIZE)
    merged = merge(tiled, MergeSettings(method=method, threshold=threshold)).detections
    plain = nms(found, iou_threshold=threshold)
    assert np.array_equal(merged.boxes, plain.boxes)
    assert np.array_equal(merged.scores, plain.scores)
    assert np.array_equal(merged.labels, plain.labels)


@given(worlds)
@settings(deadline=None, max_examples=60)
def test_every_merged_box_was_seen_or_is_the_hull_of_pieces(world):
    found = seen_by_tiles(world)
    inputs = {row[:6] for row in rows(found)}
    assert {row[:6] for row in rows(merge(found, MergeSettings(method="nms")))} <= inputs
    pieces = [t for t in rows(found) if is_piece(thing_of(*t), MergeSettings())]
    for row in rows(merge(found, MergeSettings())):
        if row[:6] in inputs:
            continue
        for side in range(4):
            assert any(piece[side] == row[side] and piece[5] == row[5] for piece in pieces)


@given(worlds)
@settings(deadline=None, max_examples=60)
def test_nothing_is_lost(world):
    """Whatever a tile saw is touched by something of its class that remains."""
    found = seen_by_tiles(world)
    for method in METHODS:
        merged = merge(found, MergeSettings(method=method))
        for box, label in zip(found.detections.boxes, found.detections.labels, strict=True):
            kept = merged.detections.boxes[merged.detections.labels == label]
            assert pairwise_iou(box[None], kept).max(initial=0.0) > 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([5, 60, 400]))
@settings(deadline=None, max_examples=25)
def test_pairs_equal_all_against_all(seed, n):
    rng = np.random.default_rng(seed)
    centers, sides = rng.uniform(-50, 300, (n, 2)), rng.lognormal(2.5, 1.2, (n, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
    iou = pairwise_iou(boxes, boxes)
    pairs = overlapping_pairs(boxes)
    expected = np.triu(iou > 0, k=1)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == list(
        map(tuple, np.argwhere(expected).tolist())
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 9, 120]), st.sampled_from([1, 50]))
@settings(deadline=None, max_examples=25)
def test_pairs_between_equal_each_against_each(seed, n, m):
    rng = np.random.default_rng(seed)
    centers, sides = rng.uniform(-50, 300, (n + m, 2)), rng.lognormal(2.5, 1.2, (n + m, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
    pairs = pairs_between(boxes[:n], boxes[n:])
    expected = np.argwhere(pairwise_iou(boxes[:n], boxes[n:]) > 0)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == list(map(tuple, expected.tolist()))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_merges_to_nothing(method):
    nothing = TileDetections.concatenate([])
    assert len(merge(nothing, MergeSettings(method=method))) == 0
