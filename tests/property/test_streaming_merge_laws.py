"""The streaming merge equals the merge of everything at once, and holds little."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_merge_laws import GRID, any_settings, rows, seen_by_tiles, worlds

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from deploy.scene.merge.streaming_merge import StreamingMerge, closed_islands
from ifkd.core.detections import Detections, pairwise_iou
from ifkd.core.tiling import TileGrid


def streamed(found, rule, grid):
    stream = StreamingMerge(rule)
    columns = len(grid.lefts)
    tops = [*grid.tops[1:], grid.size[0]]
    held = []
    for row, next_top in enumerate(tops):
        stream.add(found.select(found.tiles // columns == row), next_top=next_top)
        held.append(len(stream))
    return stream.finish(), held


@given(worlds, any_settings)
@settings(deadline=None, max_examples=150)
def test_row_by_row_equals_all_at_once(world, rule):
    found = seen_by_tiles(world)
    merged, _ = streamed(found, rule, GRID)
    assert rows(merged) == rows(merge(found, rule))


def long_scene(tile_rows):
    """A scene of 300 pixels' width with objects all over, as its tiles see them."""
    rng = np.random.default_rng(5)
    grid = TileGrid((64 + 44 * (tile_rows - 1), 300), (64, 64), 20)
    parts = []
    for index, window in enumerate(grid):
        corner = rng.uniform(0, 58, (6, 2))
        boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(3, 12, (6, 2)), 64)], axis=1)
        found = Detections(boxes.astype(np.float32), rng.random(6).astype(np.float32), rng.integers(0, 2, 6))
        found = found.translated(dx=float(window.left), dy=float(window.top))
        parts.append(TileDetections.of_tile(found, index, window=window, size=grid.size))
    return TileDetections.concatenate(parts), grid


def test_what_waits_does_not_grow_with_the_scene():
    found, grid = long_scene(60)
    merged, held = streamed(found, MergeSettings(class_agnostic_iou=0.8), grid)
    assert rows(merged) == rows(merge(found, MergeSettings(class_agnostic_iou=0.8)))
    assert max(held[5:]) < len(found) / 10
    assert held[-1] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 120))
@settings(deadline=None, max_examples=60)
def test_a_closed_island_touches_nothing_open_and_lies_above(seed, n, next_top):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 100, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 25, (n, 2))], axis=1).astype(np.float32)
    closed = closed_islands(boxes, next_top)
    assert (boxes[closed, 3] <= next_top).all()
    assert not pairwise_iou(boxes[closed], boxes[~closed]).any()
    alone = ~(pairwise_iou(boxes, boxes) - np.eye(n)).any(axis=1)
    hidden = np.array([
        alone[i] and boxes[i, 3] <= next_top and not closed[i] for i in range(n)
    ])  # fmt: skip
    for i in np.flatnonzero(hidden):  # only within the rectangle around others may a lone box be held back
        around = [boxes[~closed, :2].min(axis=0), boxes[~closed, 2:].max(axis=0)]
        assert (boxes[i, :2] >= around[0]).all() and (boxes[i, 2:] <= around[1]).all()  # noqa: PT018
