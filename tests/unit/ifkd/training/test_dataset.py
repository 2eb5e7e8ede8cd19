"""Training tiles and batches. tests/property has the laws of their geometry."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifkd import recipe
from ifkd.core.errors import DataError
from ifkd.data.coco import read_coco
from ifkd.training.dataset import Batch, BatchDataset, TileDataset, load_scaled


@pytest.fixture
def tiles(data_folder: Path) -> Callable[..., TileDataset]:
    def make(**values: Any) -> TileDataset:
        base = {"train": "train.json", "validation": "val.json", "test": "val.json", "tile_px": 64}
        return TileDataset(
            read_coco(data_folder / "train.json"), recipe.DataOptions.model_validate(base | values), seed=0
        )

    return make


def test_a_tile_has_pixels_objects_and_the_images_id(tiles: Callable[..., TileDataset]) -> None:
    dataset = tiles()
    sample = dataset[0, 3]
    assert len(dataset) == 8
    assert (sample.pixels.shape, sample.pixels.dtype) == ((3, 64, 64), torch.uint8)
    assert sample.image_id == 103
    assert (sample.targets.boxes.dtype, sample.targets.labels.dtype) == (torch.float32, torch.int64)
    assert sample.targets.boxes.shape == (2, 4)
    assert sample.targets.ignored.shape == (0, 4)


def test_images_of_an_epoch_have_different_symmetries(tiles: Callable[..., TileDataset], data_folder: Path) -> None:
    pixels = (data_folder / "images" / "train_000.png").read_bytes()
    for path in (data_folder / "images").glob("train_*.png"):
        path.write_bytes(pixels)
    dataset = tiles()
    assert len({dataset[0, index].pixels.numpy().tobytes() for index in range(8)}) >= 3


def test_batches_contain_the_tiles_of_their_keys(tiles: Callable[..., TileDataset]) -> None:
    dataset = tiles()
    batch = BatchDataset(dataset)[[(2, 5), (2, 0)]]
    assert isinstance(batch, Batch)
    assert batch.image_ids == [105, 100]
    assert torch.equal(batch.pixels[0], dataset[2, 5].pixels)


def test_an_error_of_an_image_is_returned(tiles: Callable[..., TileDataset], data_folder: Path) -> None:
    (data_folder / "images" / "train_005.png").write_bytes(b"no image")
    batches = BatchDataset(tiles())
    found = batches[[(0, 4), (0, 5)]]
    assert isinstance(found, DataError)
    assert str(pickle.loads(pickle.dumps(found))) == str(found)  # noqa: S301
    assert "train_005.png is not an image that can be read" in str(found)
    assert isinstance(batches[[(0, 4), (0, 6)]], Batch)


def test_images_are_cached_up_to_the_memory_limit(
    tiles: Callable[..., TileDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ifkd.training import dataset as module

    loaded = []

    def counted(image: Any, scale: float, **imagery: Any) -> Any:
        loaded.append(image.id)
        return load_scaled(image, scale, **imagery)

    monkeypatch.setattr(module, "load_scaled", counted)
    for cache_mb, expected in ((512, [100, 101]), (0, [100, 101, 100, 101])):
        loaded.clear()
        dataset = tiles(cache_mb=cache_mb)
        for epoch in range(2):
            for index in range(2):
                dataset[epoch, index]
        assert loaded == expected
    loaded.clear()
    jittered = tiles(augmentation={"scale_jitter": [0.9, 1.1]})
    for epoch in range(2):
        jittered[epoch, 0]
    assert loaded == [100, 100]


def test_an_image_of_another_size_than_annotated_is_refused(
    tiles: Callable[..., TileDataset], data_folder: Path, write_data_set: Callable[..., Path]
) -> None:
    write_data_set(data_folder, "wide", images=1, size=(64, 96))
    (data_folder / "images" / "wide_000.png").replace(data_folder / "images" / "train_000.png")
    with pytest.raises(DataError, match="does not have the size of its annotations"):
        tiles()[0, 0]
