"""What two tiles make of one harbor: columns 0-100 seen by tile 0, 80-180 by tile 1, 160-260 by tile 2."""

import numpy as np
import pytest

from deploy.scene.merge.merge import MergeSettings, TileDetections, merge
from ifkd.core.detections import Detections
from ifkd.core.tiling import TileGrid

SIZE = (100, 260)
WINDOWS = list(TileGrid(SIZE, (100, 100), 20))


def seen(*things, size=SIZE, windows=WINDOWS):
    """Build what tiles saw from (tile, x1, y1, x2, y2, score, label)."""
    return TileDetections.concatenate(
        [
            TileDetections.of_tile(
                Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([label], np.int64)),
                tile,
                window=windows[tile],
                size=size,
            )
            for tile, *box, score, label in things
        ]
    )


def merged(*things, **rules):
    found = merge(seen(*things), MergeSettings(**rules)).detections
    return [
        (*map(float, box), round(float(score), 3), int(label))
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def test_a_piece_is_removed_for_the_complete_box_even_with_a_better_score():
    piece, whole = (0, 84, 10, 100, 30, 0.95, 0), (1, 84, 10, 110, 30, 0.6, 0)
    assert merged(piece, whole) == [(84, 10, 110, 30, 0.6, 0)]
    assert merged(piece, whole, method="nms") == [(84, 10, 100, 30, 0.95, 0)]


def test_a_sliver_gives_way_where_plain_suppression_keeps_it():
    sliver, whole = (0, 94, 10, 100, 30, 0.4, 0), (1, 94, 10, 130, 30, 0.9, 0)
    assert merged(sliver, whole) == [(94, 10, 130, 30, 0.9, 0)]
    assert len(merged(sliver, whole, method="nms")) == 2


def test_twins_in_the_overlap_become_one():
    assert merged((0, 82, 10, 97, 30, 0.8, 1), (1, 83, 10, 97, 30, 0.9, 1)) == [(83, 10, 97, 30, 0.9, 1)]


def test_true_neighbors_stay_two():
    one, other = (0, 80.5, 10, 90, 30, 0.8, 0), (1, 91, 10, 99, 30, 0.7, 0)
    assert len(merged(one, other)) == 2


def test_a_piece_beside_a_complete_box_that_ends_before_the_edge_is_another_object():
    """The large box was seen whole by the piece's tile too: the piece is something else."""
    large, piece = (1, 83, 10, 94, 60, 0.9, 0), (0, 84, 40, 100, 50, 0.6, 0)
    assert len(merged(large, piece)) == 2
    reaching = (1, 83, 10, 120, 60, 0.9, 0)
    assert merged(reaching, piece) == [(83, 10, 120, 60, 0.9, 0)]


def test_complete_boxes_of_two_classes_stay_two():
    assert len(merged((0, 84, 10, 95, 30, 0.95, 0), (1, 84, 10, 110, 30, 0.6, 1))) == 2


def test_a_piece_of_another_class_is_removed_for_the_complete_box():
    piece, whole = (0, 84, 10, 100, 30, 0.95, 0), (1, 84, 10, 110, 30, 0.6, 1)
    assert merged(piece, whole) == [(84, 10, 110, 30, 0.6, 1)]


def test_one_object_keeps_its_best_class_where_that_is_asked_for():
    ferry, frigate = (0, 20, 10, 40, 30, 0.9, 0), (0, 20, 10, 41, 30, 0.6, 1)
    assert len(merged(ferry, frigate)) == 2
    assert merged(ferry, frigate, class_agnostic_iou=0.8) == [(20, 10, 40, 30, 0.9, 0)]
    assert len(merged(ferry, (0, 20, 10, 60, 30, 0.6, 1), class_agnostic_iou=0.8)) == 2


def test_a_piece_that_nobody_else_saw_stays():
    assert merged((0, 70, 10, 100, 30, 0.5, 0)) == [(70, 10, 100, 30, 0.5, 0)]


def test_an_object_larger_than_the_overlap_is_put_together():
    pieces = [(0, 60, 10, 100, 30, 0.7, 0), (1, 80, 11, 140, 30, 0.8, 0)]
    assert merged(*pieces) == [(60, 10, 140, 30, 0.8, 0)]


def test_an_object_over_three_tiles_is_put_together():
    pieces = [(0, 50, 10, 100, 30, 0.7, 0), (1, 80, 10, 180, 30, 0.8, 0), (2, 160, 10, 200, 30, 0.6, 0)]
    assert merged(*pieces) == [(50, 10, 200, 30, 0.8, 0)]


def test_two_long_objects_side_by_side_are_put_together_each_with_its_own():
    pieces = [
        (0, 50, 10, 100, 20, 0.7, 0), (1, 80, 10, 150, 20, 0.8, 0),
        (0, 40, 24, 100, 34, 0.6, 0), (1, 80, 24, 140, 34, 0.9, 0),
    ]  # fmt: skip
    assert set(merged(*pieces)) == {(50, 10, 150, 20, 0.8, 0), (40, 24, 140, 34, 0.9, 0)}


def test_in_a_crowd_each_piece_finds_its_own_counterpart():
    """The second tile sees both 3 pixels lower, so its upper one agrees with either of the first tile's."""
    pieces = [
        (0, 50, 10, 100, 30, 0.7, 0), (1, 80, 13, 150, 33, 0.8, 0),
        (0, 50, 18, 100, 38, 0.6, 0), (1, 80, 21, 150, 41, 0.9, 0),
    ]  # fmt: skip
    assert set(merged(*pieces)) == {(50, 10, 150, 33, 0.8, 0), (50, 18, 150, 41, 0.9, 0)}


def test_objects_that_one_tile_separates_stay_separate():
    whole, piece = (40, 10, 96, 60, 0.9, 0), (0, 84, 40, 100, 50, 0.6, 0)
    assert len(merged((0, *whole), piece)) == 2


def test_pieces_that_disagree_in_the_overlap_are_two_objects():
    assert len(merged((0, 50, 10, 100, 30, 0.7, 0), (1, 80, 25, 150, 60, 0.8, 0))) == 2


def test_a_box_at_the_scenes_own_border_is_complete():
    at_border, inside = (0, 0, 10, 20, 30, 0.6, 0), (0, 2, 10, 22, 30, 0.8, 0)
    assert merged(at_border, inside) == [(2, 10, 22, 30, 0.8, 0)]
    assert not seen(at_border).pieces(2.0).any()


def test_an_object_on_a_crossing_of_four_tiles_is_one():
    size = (180, 180)
    windows = list(TileGrid(size, (100, 100), 20))
    true = np.array([85, 84, 130, 150])
    things = []
    for tile, window in enumerate(windows):
        cut = [
            max(true[0], window.left), max(true[1], window.top), min(true[2], window.right), min(true[3], window.bottom)
        ]  # fmt: skip
        things.append((tile, *map(float, cut), 0.5 + 0.1 * (4 - tile), 0))
    found = merge(seen(*things, size=size, windows=windows), MergeSettings()).detections
    assert found.boxes.tolist() == [[85, 84, 130, 150]]


@pytest.mark.parametrize(
    ("method", "boxes"), [("nmm", [(0, 10, 60, 20)]), ("greedy_nmm", [(0, 10, 45, 20), (30, 10, 60, 20)])]
)
def test_merging_by_hulls(method, boxes):
    chain = [(0, 0, 10, 30, 20, 0.9, 0), (0, 15, 10, 45, 20, 0.5, 0), (0, 30, 10, 60, 20, 0.8, 0)]
    found = merged(*chain, method=method, metric="ios", threshold=0.4)
    assert [row[:4] for row in found] == boxes
    assert found[0][4] == 0.9


def test_a_crowd_is_no_square():
    """20,000 boxes, most of them alone, next to one box as large as the scene."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20_000, (20_000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (20_000, 2))], axis=1)
    boxes[0] = [0, 0, 20_000, 20_000]
    found = Detections(boxes.astype(np.float32), rng.random(20_000).astype(np.float32), np.zeros(20_000, np.int64))
    bounds = np.tile([-np.inf, -np.inf, np.inf, np.inf], (20_000, 1))
    kept = merge(TileDetections(found, np.zeros(20_000, np.int64), bounds), MergeSettings())
    assert 19_000 < len(kept) <= 20_000
