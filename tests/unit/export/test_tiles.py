"""Tiles of a recipe's images, and noise in their place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.tiles import read_tiles, sample_tiles
from ifkd.core.config import parse
from ifkd.core.oriented_boxes import envelopes, from_upright
from ifkd.data.coco import read_coco
from ifkd.imagery.image_files import PADDING_RGB
from ifkd.recipe import DataOptions


def data_of(root: Path, **values: Any) -> DataOptions:
    return parse(
        {"root": str(root), "train": "train.json", "test": "val.json", "tile_px": 64} | values, DataOptions, source=""
    )


def test_sample_tiles_show_an_object_of_each_validation_image(
    tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    write_data_set(tmp_path, "val", images=3, size=(96, 160))
    sample = sample_tiles(data_of(tmp_path, validation="val.json"))
    assert sample.source == "3 tiles of the validation split"
    assert (sample.pixels.shape, sample.pixels.dtype) == ((3, 3, 64, 64), np.uint8)
    # Objects have saturated colors, the ground is gray.
    assert all(np.ptp(tile.astype(int), axis=0).max() > 150 for tile in sample.pixels)


def test_images_are_scaled_and_padded_as_in_training(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    write_data_set(tmp_path, "val", images=1, size=(64, 64))
    sample = sample_tiles(data_of(tmp_path, validation="val.json", scale=0.5))
    assert sample.pixels[0, :, 63, 63].tolist() == list(PADDING_RGB)
    assert (sample.pixels[0, :, 32:, :] == np.array(PADDING_RGB)[:, None, None]).all()
    assert not (sample.pixels[0, :, :32, :32] == np.array(PADDING_RGB)[:, None, None]).all()


def test_oriented_boxes_are_those_of_the_tile(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    """An image of 96 x 160 px at half size is larger than its tile: boxes are scaled, moved, cut and left out."""
    write_data_set(tmp_path, "val", images=3, size=(96, 160))
    images = read_coco(tmp_path / "val.json").images
    turned = [replace(image, oriented=from_upright(image.boxes)) for image in images]
    plain = read_tiles(images, data_of(tmp_path, validation="val.json", scale=0.5, tile_px=32))
    tiles = read_tiles(turned, data_of(tmp_path, validation="val.json", scale=0.5, tile_px=32))
    assert any(len(one.boxes) < len(image.boxes) for one, image in zip(tiles.images, images, strict=True))
    for one, other in zip(tiles.images, plain.images, strict=True):
        assert one.oriented is not None
        assert one.boxes == pytest.approx(other.boxes, abs=1e-4)
        assert envelopes(one.oriented) == pytest.approx(other.boxes, abs=1e-4)
        assert one.ignore.tolist() == other.ignore.tolist()


def test_missing_images_are_replaced_by_deterministic_noise(tmp_path: Path) -> None:
    first, second = (sample_tiles(data_of(tmp_path, validation="val.json"), count=2) for _ in range(2))
    assert first.source.startswith("2 tiles of seeded noise")
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.pixels[0].std() > 10
    assert (first.pixels[0] != first.pixels[1]).any()
