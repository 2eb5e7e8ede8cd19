"""Objectness of boxes: the largest value of the cells that a box touches, compared with a loop over all cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ifkd.core.detections import Array
from ifkd.imagery.objectness import box_objectness, kept_up_to


def slow_objectness(objectness: Array, box: Array, cell_px: float) -> float:
    """Return the maximum over all cells that share an area with the box."""
    largest = 0.0
    for (row, column), value in np.ndenumerate(objectness):
        left, top = column * cell_px, row * cell_px
        overlaps = box[0] < left + cell_px and box[2] > left and box[1] < top + cell_px and box[3] > top
        largest = max(largest, float(value)) if overlaps else largest
    return largest


@given(st.integers(0, 2**32 - 1), st.sampled_from([8.0, 12.5, 32.0]))
def test_the_value_is_that_of_a_loop_over_all_cells(seed: int, cell_px: float) -> None:
    rng = np.random.default_rng(seed)
    objectness = rng.random((5, 7), np.float32)
    corners = rng.uniform(0, 1, (20, 2)) * (7 * cell_px, 5 * cell_px)
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 40, (20, 2))], axis=1)
    expected = [slow_objectness(objectness, box, cell_px) for box in boxes]
    assert box_objectness(objectness, boxes, cell_px=cell_px).tolist() == expected


def test_a_box_beyond_the_map_has_the_value_of_its_part_inside() -> None:
    objectness = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    boxes = np.array([[-50.0, -50.0, 500.0, 500.0], [-9.0, -9.0, 4.0, 4.0], [64.0, 0.0, 70.0, 9.0]])
    assert box_objectness(objectness, boxes, cell_px=32.0).tolist() == np.float32([0.4, 0.1, 0.0]).tolist()


def test_a_box_has_at_most_the_value_of_a_tile_around_it() -> None:
    rng = np.random.default_rng(0)
    objectness = rng.random((16, 16), np.float32)
    low = rng.uniform(100, 150, (50, 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 40, (50, 2))], axis=1)
    values = box_objectness(objectness, boxes, cell_px=16.0)
    assert (values <= box_objectness(objectness, np.array([[100.0, 100.0, 190.0, 190.0]]), cell_px=16.0)).all()


def test_a_box_is_kept_as_long_as_a_cell_is_near_each_of_its_points() -> None:
    """Within 20 px: of the points of the first box, 30 is near 0.8 only, and the others near 0.8 or 0.9."""
    objectness = np.array([[0.9, 0.1, 0.1, 0.1, 0.8, 0.7]], np.float32)
    boxes = np.array([[0, 0, 60, 9], [2, 0, 18, 9], [30, 0, 50, 9]], np.float32)
    alone = [kept_up_to(objectness, box[None], cell_px=10.0, margin_px=20.0).tolist() for box in boxes]
    assert alone == [[np.float32(value)] for value in (0.8, 0.9, 0.8)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([6.0, 16.0, 40.0]))
def test_no_box_has_a_higher_value_than_the_cells_near_one_of_its_points(seed: int, margin_px: float) -> None:
    """The cells within the margin of a point, by a loop; a box at the limit would touch a tile that is skipped."""
    rng = np.random.default_rng(seed)
    objectness = rng.random((6, 8), np.float32)
    corners = rng.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (4, 2))], axis=1).clip(max=[80, 60, 80, 60])
    for box in boxes:
        (value,) = kept_up_to(objectness, box[None], cell_px=10.0, margin_px=margin_px)
        for point in rng.uniform(box[:2], box[2:], (40, 2)):
            near = np.concatenate([point - margin_px, point + margin_px])
            assert value <= slow_objectness(objectness, near, 10.0)


def test_a_chain_of_overlaps_is_kept_as_long_as_all_its_boxes_are() -> None:
    objectness = np.array([[0.9, 0.1, 0.8, 0.7, 0.6, 0.5]], np.float32)
    boxes = np.array([[0, 0, 9, 9], [8, 0, 20, 9], [10, 0, 19, 9], [18, 2, 29, 8], [29, 0, 40, 9], [50, 0, 59, 9]])
    found = kept_up_to(objectness, boxes.astype(np.float32), cell_px=10.0, margin_px=4.0)
    # The third is in a cell of 0.1, and so are its neighbors through it; the fifth only touches the fourth.
    assert found.tolist() == np.float32([0.1, 0.1, 0.1, 0.1, 0.7, 0.5]).tolist()
    nothing = kept_up_to(objectness, np.zeros((0, 4), np.float32), cell_px=10.0, margin_px=20.0)
    assert nothing.shape == (0,)
