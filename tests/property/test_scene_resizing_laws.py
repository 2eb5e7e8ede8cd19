"""A tile of a scene is cut from the resized scene, whichever tiles are read and however they are joined."""

from pathlib import Path

import numpy as np
import pytest
from fakes.fake_scene import write_tif
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy.scene.merge.merge import MergeSettings
from deploy.scene.read import row_scaler
from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.settings import DetectionSettings, grid_for
from ifkd.core.detections import Array
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.tiling import TileGrid
from ifkd.imagery.contrast import PADDING_RGB
from ifkd.imagery.image_files import resize
from ifkd.imagery.image_tiles import tile_image

SETTINGS = DetectionSettings(
    scale=0.4, overlap_px=4, postprocess=PostprocessConfig(score_threshold=0.3), merge=MergeSettings(threshold=0.5)
)


def noise(height: int, width: int) -> Array:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def padded(pixels: Array, size: tuple[int, int]) -> Array:
    """Return pixels with the padding color up to a size, written pixel by pixel."""
    out = np.empty((*size, 3), np.uint8)
    out[:] = PADDING_RGB
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


@st.composite
def grids(draw: st.DrawFn) -> tuple[TileGrid, tuple[int, int]]:
    """A grid, and the size of its tiles after resizing: larger, smaller, or a mixture."""
    tile = draw(st.tuples(st.integers(8, 40), st.integers(8, 40)))
    window = draw(st.tuples(st.integers(10, 70), st.integers(10, 70)))
    multiples = tuple(side // np.gcd(side, other) for side, other in zip(window, tile, strict=True))
    overlap = draw(st.integers(0, min(window) - 2))
    fits = max(multiples) <= min(window) - overlap
    size = draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    return TileGrid(size, window, overlap, (int(multiples[0]), int(multiples[1])) if fits else (1, 1)), tile


SHARED = TileGrid((170, 301), (40, 40), 10, (5, 5)), (16, 16)
THIRDS = TileGrid((200, 290), (48, 64), 9, (3, 8)), (16, 24)


@given(grids(), st.integers(0, 2**32 - 1), st.integers(0, 3))
@example(SHARED, 2**32 - 1, 0)
@example(THIRDS, 2**32 - 1, 1)
@settings(deadline=None, max_examples=60)
def test_a_tile_is_the_window_of_the_whole_scene(
    drawn: tuple[TileGrid, tuple[int, int]], chosen: int, first_row: int
) -> None:
    grid, tile_px = drawn
    selected = np.array([chosen >> (n % 32) & 1 for n in range(len(grid))], bool)
    pixels = noise(*grid.size)
    whole = Image.fromarray(padded(pixels, grid.covered))
    with Scene(pixels) as scene:
        for tile in read_tiles(scene, grid, first_row=first_row, selected=selected, tile_px=tile_px):
            assert (tile.patch is not None) == selected[tile.index]
            if tile.patch is not None:
                window = tile.window
                columns, rows = (window.left, 0, window.right, whole.height), (0, window.top, tile_px[1], window.bottom)
                across = whole.resize((tile_px[1], whole.height), Image.Resampling.BILINEAR, box=columns)
                expected = across.resize(tile_px[::-1], Image.Resampling.BILINEAR, box=rows)
                np.testing.assert_array_equal(tile.patch.pixels, np.asarray(expected))


@pytest.mark.parametrize("joint_px", [60, 8192])
def test_a_tile_is_that_of_training_where_the_whole_image_is_resized(
    joint_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_scaler, "MAX_JOINT_PX", joint_px)
    pixels = noise(200, 290)
    image = tile_image(pixels, scale=0.4, tile_px=(16, 16), overlap_px=4)
    with Scene(pixels) as scene:
        tiles = list(read_tiles(scene, grid_for(scene.size, (16, 16), SETTINGS), tile_px=(16, 16)))
    assert [(one.window.top * 2 // 5, one.window.left * 2 // 5) for one in tiles] == [
        (one.top, one.left) for one in image.windows
    ]
    found = [one.patch.pixels.transpose(2, 0, 1) for one in tiles if one.patch is not None]
    np.testing.assert_array_equal(found, image.tiles)


@given(grids())
@example(SHARED)
@settings(deadline=None, max_examples=30)
def test_a_tile_that_is_resized_alone_differs_in_its_border_only(drawn: tuple[TileGrid, tuple[int, int]]) -> None:
    """Of the filter of a border pixel, at most an eighth of the weight is beyond the border (a half if enlarged)."""
    grid, tile_px = drawn
    pixels = noise(*grid.size)
    enlarged = any(tile > window for tile, window in zip(tile_px, grid.tile_px, strict=True))
    ring = [max(1, -(-tile // (2 * window))) for tile, window in zip(tile_px, grid.tile_px, strict=True)]
    inner = np.s_[ring[0] : tile_px[0] - ring[0], ring[1] : tile_px[1] - ring[1]]
    with Scene(pixels) as scene:
        for tile, native in zip(read_tiles(scene, grid, tile_px=tile_px), read_tiles(scene, grid), strict=True):
            assert tile.patch is not None
            assert native.patch is not None
            alone = resize(native.patch.pixels, tile_px)
            np.testing.assert_array_equal(tile.patch.pixels[inner], alone[inner])
            if not enlarged:
                difference = np.abs(tile.patch.pixels.astype(int) - alone)
                assert difference.max() <= np.ceil(255 * (1 - (7 / 8) ** 2)) + 1


def test_a_tile_beside_unreadable_rows_is_resized_alone(tmp_path: Path) -> None:
    pixels = noise(200, 200)
    path = write_tif(tmp_path / "scene.tif", pixels, blockysize=40, compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    grid = TileGrid((200, 200), (40, 40), 0, (5, 5))
    with Scene(path) as scene:
        read = list(read_tiles(scene, grid, tile_px=(16, 16)))
    assert [one.problem is None for one in read] == [True] * 15 + [False] * 10
    tiles = [one.patch.pixels for one in read[10:15] if one.patch is not None]
    windows = [pixels[one.window.top : one.window.bottom, one.window.left : one.window.right] for one in read[10:15]]
    np.testing.assert_array_equal(tiles, [resize(window, (16, 16)) for window in windows])


@given(st.integers(32, 400), st.floats(0.1, 3.0), st.integers(0, 30), st.integers(1, 2000))
def test_windows_share_their_pixels_where_this_moves_them_little(
    tile: int, scale: float, overlap_px: int, length: int
) -> None:
    values = SETTINGS.model_copy(update={"scale": scale, "overlap_px": overlap_px})
    grid = grid_for((length, length), (tile, tile), values)
    window, (multiple, _) = grid.tile_px[0], grid.multiple_px
    assert multiple == 1 or (multiple <= 16 and multiple * tile % window == 0)
    assert grid.overlap_px == min(round(overlap_px / scale), window - 1)
