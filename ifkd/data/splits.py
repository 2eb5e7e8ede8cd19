"""Training, validation and test split of a recipe's data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ifkd import recipe
from ifkd.core.errors import DataError
from ifkd.data.coco import CocoDataset, read_coco

Split = Literal["train", "validation", "test"]


def read_split(data: recipe.DataOptions, split: Split) -> CocoDataset:
    """Return a split of a recipe's data.

    Where `data.validation` is a fraction, that part of the training images is held out by scene: all images of a scene
    are in training, or all in validation.

    Raises:
        DataError: A file is missing or has mistakes, or the fraction holds out all images.
    """
    if split == "test":
        return _read(data, data.test)
    if isinstance(data.validation, Path):
        return _read(data, data.train if split == "train" else data.validation)
    both = _read(data, data.train)
    held_out = held_out_scenes([image.scene for image in both.images], data.validation)
    images = tuple(image for image in both.images if (image.scene in held_out) == (split == "validation"))
    if not 0 < len(images) < len(both):
        problem = f"data.validation = {data.validation} holds out all {len(both)} images of {both.path}"
        got, expected = f"{len(held_out)} place (`scene` of the images)", "images of two places or more"
        hint = "Name a file with validation images, or give images of different places another `scene`."
        raise DataError(problem, got=got, expected=expected, hint=hint)
    return replace(both, images=images)


def resolve_path(data: recipe.DataOptions, path: Path) -> Path:
    """Return a path of the recipe's data section, relative to `data.root` where that is set."""
    return data.root / path if data.root is not None else path


def held_out_scenes(scenes: Sequence[str], fraction: float) -> set[str]:
    """Return scenes, drawn with a fixed seed, that together have at least `fraction` of the images, given by scene."""
    images_of = Counter(scenes)
    names = sorted(images_of)
    held_out: set[str] = set()
    count = 0
    for index in np.random.default_rng(0).permutation(len(names)):
        if count >= fraction * len(scenes):
            break
        held_out.add(names[index])
        count += images_of[names[index]]
    return held_out


def _read(data: recipe.DataOptions, path: Path) -> CocoDataset:
    if not (file := resolve_path(data, path)).exists():
        hint = "Check the paths of the recipe; data.root=DIR sets the folder of its data."
        raise DataError(f"There is no annotation file {file}", hint=hint)
    images = None if data.images is None else resolve_path(data, data.images)
    return read_coco(file, images=images, merge_classes=data.merge_classes)
