"""The splits of a recipe's data, wherever they lie."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ifkd import recipe
from ifkd.data.coco import CocoDataset, read_coco

Split = Literal["train", "validation", "test"]


def read_split(data: recipe.DataOptions, split: Split) -> CocoDataset:
    """Return a split of a recipe's data.

    When `data.validation` is a share, that part of the training images is held out by place: pictures of one
    place are all in training or all in validation.

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    if split == "test":
        return _read(data, data.test)
    if isinstance(data.validation, Path):
        return _read(data, data.train if split == "train" else data.validation)
    whole = _read(data, data.train)
    held_out = held_out_places([image.place for image in whole.images], data.validation)
    wanted = split == "validation"
    return replace(whole, images=tuple(image for image in whole.images if (image.place in held_out) == wanted))


def path_of(data: recipe.DataOptions, path: Path) -> Path:
    """Return where a path of the recipe's data section lies."""
    return data.root / path if data.root is not None else path


def _read(data: recipe.DataOptions, path: Path) -> CocoDataset:
    images = None if data.images is None else path_of(data, data.images)
    return read_coco(path_of(data, path), images=images, merge_classes=data.merge_classes)


def held_out_places(places: Sequence[str], share: float) -> set[str]:
    """Return places, drawn always alike, that together hold at least `share` of the images; `places` is of each."""
    images_of = Counter(places)
    order = np.random.default_rng(0).permutation(len(images_of))
    known = sorted(images_of)
    held_out: set[str] = set()
    count = 0
    for index in order:
        if count >= share * len(places):
            break
        held_out.add(known[index])
        count += images_of[known[index]]
    return held_out
