"""Images as scaled tiles, and detections mapped back."""

import numpy as np
import pytest

from ifkd.core.detections import Detections
from ifkd.imagery.contrast import PADDING_RGB
from ifkd.imagery.image_files import resize
from ifkd.imagery.image_tiles import scaled_size, tile_image

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def test_a_small_image_is_one_padded_tile() -> None:
    image = tile_image(PIXELS, scale=0.5, tile_px=(64, 64), overlap_px=8)
    assert image.tiles.shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(image.tiles[0, :, :30, :50].transpose(1, 2, 0), resize(PIXELS, (30, 50)))
    assert (image.tiles[0, :, 30:].transpose(1, 2, 0) == PADDING_RGB).all()


def test_a_large_image_is_a_grid_of_overlapping_tiles() -> None:
    image = tile_image(PIXELS, scale=1.0, tile_px=(32, 64), overlap_px=4)
    assert [(window.top, window.left) for window in image.windows] == [(0, 0), (0, 36), (28, 0), (28, 36)]
    for tile, window in zip(image.tiles, image.windows, strict=True):
        part = PIXELS[window.top : window.bottom, window.left : window.right]
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), part)


def test_detections_are_mapped_to_the_image_and_clipped() -> None:
    image = tile_image(PIXELS, scale=0.5, tile_px=(64, 64), overlap_px=8)
    boxes = np.array([[10, 5, 20, 15], [40, 20, 60, 40]], np.float32)
    found = image.to_image(Detections(boxes, np.array([0.5, 0.9], np.float32), np.array([0, 1])))
    assert found.boxes.tolist() == [[20, 10, 40, 30], [80, 40, 100, 60]]
    assert found.boxes.dtype == np.float32


@pytest.mark.parametrize(("size", "scale", "expected"), [((3, 1000), 0.1, (1, 100)), ((101, 99), 0.5, (50, 50))])
def test_the_scaled_size_is_rounded(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    assert scaled_size(size, scale) == expected
