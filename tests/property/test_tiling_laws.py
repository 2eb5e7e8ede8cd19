"""The laws of a tile grid: it covers, it overlaps, it does not waste."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ifkd.core.errors import ConfigError
from ifkd.core.tiling import TileGrid


@st.composite
def grids(draw):
    tile = draw(st.tuples(st.integers(6, 60), st.integers(6, 60)))
    overlap = draw(st.integers(0, min(tile) - 4))
    multiple = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return TileGrid(draw(st.tuples(st.integers(1, 300), st.integers(1, 300))), tile, overlap, multiple)


@given(grids())
@settings(deadline=None)
def test_every_pixel_is_in_a_tile_and_neighbors_overlap(grid):
    for length, tile, starts in zip(grid.size, grid.tile_px, (grid.tops, grid.lefts), strict=True):
        assert starts[0] == 0
        assert starts[-1] + tile >= length
        assert all(b > a for a, b in itertools.pairwise(starts))
        assert all(a + tile - b >= grid.overlap_px for a, b in itertools.pairwise(starts))


@given(grids())
@settings(deadline=None)
def test_tiles_start_at_multiples_and_stay_inside_unless_the_scene_is_smaller(grid):
    down, across = grid.multiple_px
    for window in grid:
        assert (window.height, window.width) == grid.tile_px
        assert window.top % down == window.left % across == 0
        assert window.bottom < grid.size[0] + down or (window.top == 0 and grid.size[0] < window.height)
        assert window.right < grid.size[1] + across or (window.left == 0 and grid.size[1] < window.width)
    assert grid.covered == (max(one.bottom for one in grid), max(one.right for one in grid))


@given(grids())
@settings(deadline=None)
def test_no_grid_with_fewer_tiles_would_do(grid):
    axes = zip(grid.size, grid.tile_px, (grid.tops, grid.lefts), grid.multiple_px, strict=True)
    for length, tile, starts, multiple in axes:
        n, step = len(starts) - 1, (tile - grid.overlap_px) // multiple * multiple
        assert n == 0 or (n - 1) * step + tile < length


@given(grids())
@settings(deadline=None)
def test_rows_and_length_agree_with_the_iteration(grid):
    windows = list(grid)
    assert len(windows) == len(grid) == len(set(windows))
    assert [window for row in grid.rows() for window in row] == windows
    assert windows == sorted(windows, key=lambda window: (window.top, window.left))


@given(grids())
@settings(deadline=None)
def test_an_object_as_small_as_the_overlap_is_whole_in_some_tile(grid):
    side = max(1, grid.overlap_px)
    for length, tile, starts in zip(grid.size, grid.tile_px, (grid.tops, grid.lefts), strict=True):
        for first in range(max(0, length - side + 1)):
            assert any(start <= first and first + side <= start + tile for start in starts)


@pytest.mark.parametrize("overlap", [-1, 32, 40])
def test_an_overlap_that_does_not_fit_is_refused(overlap):
    with pytest.raises(ConfigError, match=f"got {overlap} with tiles of 32x48"):
        TileGrid((100, 100), (32, 48), overlap)


@pytest.mark.parametrize(("size", "tile"), [((0, 5), (8, 8)), ((5, 5), (0, 8))])
def test_a_grid_without_pixels_is_refused(size, tile):
    with pytest.raises(ConfigError, match="at least 1x1"):
        TileGrid(size, tile, 0)
