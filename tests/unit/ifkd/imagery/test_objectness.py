"""Objectness of boxes: the largest value of the cells that a box touches, compared with a loop over all cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ifkd.core.detections import Array
from ifkd.imagery.objectness import box_objectness


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
