"""Cells of a screen over tiles, compared with the objectness of boxes that is computed for the calibration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.scene.screen.screen_layout import BAND_PX, NO_DATA, ScreenLayout
from deploy.scene.settings import ScreenSettings
from ifkd.core.tiling import TileGrid
from ifkd.imagery.objectness import box_objectness

SCREEN = ScreenSettings(threshold=0.5, auto=True, scale=0.25, stride=16, context_px=20, margin_px=16)


def layout_of(size, *, factor=4.0, margin=20, selected=None):
    return ScreenLayout(TileGrid(size, (256, 256), 64), SCREEN, factor, margin, selected)


def scores_of(layout, cells):
    scores = np.full((2, len(layout.grid.tops), len(layout.grid.lefts)), NO_DATA, np.float32)
    for band in layout.bands:
        first, stop = layout.rows_of(band)
        found = layout.tile_scores(band, cells[first:stop])
        rows = slice(found.first_row, found.first_row + found.scores.shape[1])
        scores[:, rows] = np.maximum(scores[:, rows], found.scores)
    return layout.joined_scores(scores)


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(200, 6000),
    width=st.integers(200, 1200),
    factor=st.sampled_from([1.0, 2.5, 4.0]),
    margin=st.integers(0, 100),
    seed=st.integers(0, 99),
)
def test_a_tile_has_the_value_of_a_box_around_it_and_its_margin(height, width, factor, margin, seed):
    layout = layout_of((height, width), factor=factor, margin=margin)
    cells = np.random.default_rng(seed).random((-(-height // int(layout.cell_px)), layout.columns), np.float32)
    tiles = np.array([[one.left, one.top, min(one.right, width), min(one.bottom, height)] for one in layout.grid])
    expected = box_objectness(cells, tiles + margin * np.array([-1, -1, 1, 1]), cell_px=layout.cell_px)
    np.testing.assert_array_equal(scores_of(layout, cells), expected)


def test_a_tile_without_data_has_no_score_whatever_is_beside_it():
    layout = layout_of((600, 600))
    cells = np.full((10, 10), NO_DATA, np.float32)
    cells[:, 6:] = 0.7  # from 384 on
    scores = scores_of(layout, cells).reshape(3, 3)
    assert layout.grid.lefts == [0, 192, 344]
    np.testing.assert_array_equal(scores, np.float32([[NO_DATA, 0.7, 0.7]]).repeat(3, axis=0))


def test_bands_are_all_rows_once_and_the_first_ones_are_spread_over_the_scene():
    layout = layout_of((9 * BAND_PX * 4, 600))
    assert sorted(layout.bands) == list(range(9))
    assert layout.bands[:2] == layout.probed == (2, 6)
    rows = [row for band in range(9) for row in range(*layout.rows_of(band))]
    assert rows == list(range(9 * BAND_PX // 16))
    known = layout.known_rows(frozenset({2}))
    middles = np.array(layout.grid.tops) + 128
    inside = (middles > 2 * BAND_PX * 4 + 32) & (middles < 3 * BAND_PX * 4 - 32)
    outside = (middles < 2 * BAND_PX * 4 - 32) | (middles > 3 * BAND_PX * 4 + 32)
    assert inside.any()
    assert known[inside].all()
    assert not known[outside].any()
    assert layout.known_rows(frozenset(range(9))).all()


@pytest.mark.parametrize("height", [800, 1000, 1500, 1700, 2048, 3000, 4096, 8000, 16384])
def test_a_quarter_of_a_small_scene_is_also_screened_first(height):
    layout = layout_of((height, 600))
    assert layout.known_rows(frozenset(layout.probed)).any()
    screened = [row for band in layout.probed for row in range(*layout.rows_of(band))]
    assert 0.15 < len(screened) * layout.cell_px / height < 0.4


def test_only_the_area_of_interest_is_screened():
    grid = TileGrid((9 * BAND_PX * 4, 4000), (256, 256), 64)
    chosen = np.zeros((len(grid.tops), len(grid.lefts)), bool)
    chosen[1, 3:5] = True
    layout = layout_of((9 * BAND_PX * 4, 4000), selected=chosen.ravel())
    assert layout.bands == (0,)
    ((first, stop),) = layout.pieces()
    assert first * 64 <= grid.lefts[3] - 20 < (first + 1) * 64
    assert (stop - 1) * 64 < grid.lefts[4] + 256 + 20 <= stop * 64


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [((32, 40), (8, 9), (30, 42, 6, 11)), ((0, 4), (0, 8), (0, 6, 0, 10)), ((40, 47), (40, 47), (38, 47, 38, 47))],
)
def test_the_network_sees_cells_with_their_context_as_far_as_the_scene_reaches(rows, columns, expected):
    window = layout_of((3000, 3000)).pixels_of(rows, columns)
    assert (window.top, window.bottom, window.left, window.right) == tuple(16 * cell for cell in expected)
