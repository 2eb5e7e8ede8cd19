"""Splits of a recipe: from files, or by holding out a fraction of the scenes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifkd import recipe
from ifkd.core.errors import DataError
from ifkd.data.splits import read_split, resolve_path


def data(root: Path | None, **values: Any) -> recipe.DataOptions:
    base = {"train": "train.json", "validation": "val.json", "test": "val.json", "tile_px": 64}
    return recipe.DataOptions.model_validate(base | {"root": root} | values)


def test_paths_are_relative_to_the_root(data_folder: Path) -> None:
    settings = data(data_folder)
    assert [len(read_split(settings, split)) for split in ("train", "validation", "test")] == [8, 4, 4]
    assert read_split(settings, "train").images[0].path == data_folder / "images" / "train_000.png"
    assert resolve_path(data(data_folder), Path("/elsewhere/a.json")) == Path("/elsewhere/a.json")
    rootless = data(None, train=data_folder / "train.json")
    assert resolve_path(rootless, Path("a.json")) == Path("a.json")
    assert len(read_split(rootless, "train")) == 8


def test_image_folder_of_the_recipe(data_folder: Path) -> None:
    split = read_split(data(data_folder, images="pictures"), "test")
    assert split.images[0].path == data_folder / "pictures" / "val_000.png"


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.34, 0.5, 0.9])
def test_a_fraction_is_held_out_by_scene(tmp_path: Path, write_data_set: Callable[..., Path], fraction: float) -> None:
    write_data_set(tmp_path, "train", images=30, size=(32, 64))  # ten scenes of three images
    settings = data(tmp_path, validation=fraction)
    train, validation = read_split(settings, "train"), read_split(settings, "validation")
    assert not {image.scene for image in train.images} & {image.scene for image in validation.images}
    assert len(train) + len(validation) == 30
    assert {image.id for image in train.images} | {image.id for image in validation.images} == set(range(100, 130))
    assert fraction * 30 <= len(validation) < fraction * 30 + 3
    again = read_split(settings, "validation")
    assert [image.id for image in again.images] == [image.id for image in validation.images]
    assert train.classes == validation.classes


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_fraction_that_holds_out_all_images_is_refused(
    tmp_path: Path, write_data_set: Callable[..., Path], split: Any
) -> None:
    write_data_set(tmp_path, "train", images=3, size=(32, 64))  # one scene
    expected = r"validation = 0\.15 holds out all 3 images .*got 1 place .*expected images of two places.*Name a file"
    with pytest.raises(DataError, match=expected):
        read_split(data(tmp_path, validation=0.15), split)


def test_a_missing_file_is_named_with_the_key_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no annotation file .*train\.json.*data\.root=DIR"):
        read_split(data(tmp_path), "train")


def test_classes_are_merged_in_every_split(data_folder: Path) -> None:
    settings = data(data_folder, merge_classes={"tug": "barge"})
    for split in ("train", "validation", "test"):
        assert read_split(settings, split).classes == ("barge", "ferry")
