"""Location, key and capacity of the caches of a run's frozen models."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import __version__ as pillow_version

from ifkd import recipe
from ifkd.core.errors import ConfigError
from ifkd.data.coco import CocoDataset, LabeledImage

NEUTRAL = {"scale_jitter": (1.0, 1.0)}
"""Values of augmentation options that change nothing; for other options these are 0 and false."""
SYMMETRIES = {"flip", "quarter_turns"}
"""Augmentations with few results for each image."""


@dataclass(frozen=True, slots=True)
class TileSampling:
    """Settings that determine all tiles of a training run on given data."""

    seed: int
    epochs: int


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Location and key of cached teacher outputs."""

    folder: Path
    tile_px: int
    """Side of a tile, pixels."""
    max_tiles: int
    """Number of distinct tiles."""
    depends_on: dict[str, Any]
    """The images and their preprocessing, as written to the header of a store."""
    rebuild: bool = False
    """Replace stores of other networks or images instead of refusing them."""


def make_cache_spec(
    dataset: CocoDataset, data: recipe.DataOptions, folder: Path, *, rebuild: bool, sampling: TileSampling | None = None
) -> CacheSpec:
    """Return the cache specification of a training run.

    Args:
        dataset: The training images.
        data: Their preprocessing and augmentation.
        folder: Folder of the caches.
        rebuild: Replace caches that depend on something else.
        sampling: If given, every tile of the run is cached, for other runs with the same sampling; else only tiles
            that recur within a run.

    Raises:
        ConfigError: Without `sampling`, the augmentation has an unlimited number of results.
    """
    names = "\n".join(f"{image.id} {image.path.name} {image.size}" for image in dataset.images)
    depends_on = {
        "images": f"{len(dataset)} of {dataset.path.name}, {hashlib.sha256(names.encode()).hexdigest()[:16]}",
        "scale": data.scale,
        "tile_px": data.tile_px,
        "turns": [name for name in sorted(SYMMETRIES) if getattr(data.augmentation, name)],
        "pillow": pillow_version,
    }
    if sampling is None:
        return CacheSpec(folder, data.tile_px, count_distinct_tiles(dataset.images, data), depends_on, rebuild)
    depends_on |= {
        "augmentation": data.augmentation.model_dump(mode="json"),
        "seed": sampling.seed,
        "epochs": sampling.epochs,
    }
    folder = folder / f"seed_{sampling.seed}"
    return CacheSpec(folder, data.tile_px, len(dataset) * sampling.epochs, depends_on, rebuild)


def count_distinct_tiles(images: Sequence[LabeledImage], data: recipe.DataOptions) -> int:
    """Return the number of distinct training tiles: the images times their flips and quarter turns.

    Raises:
        ConfigError: The augmentation, or random crops of larger images, have an unlimited number of results.
    """
    unlimited = [
        f"data.augmentation.{name} = {getattr(data.augmentation, name)}"
        for name in type(data.augmentation).model_fields
        if name not in SYMMETRIES and getattr(data.augmentation, name) not in (NEUTRAL.get(name), 0, None)
    ]
    larger = sum(round(max(image.size) * data.scale) > data.tile_px for image in images)
    if larger:
        unlimited.append(
            f"random crops, as {larger} of {len(images)} images are larger than data.tile_px = {data.tile_px}"
        )
    if unlimited:
        raise ConfigError(
            "Teacher outputs cannot be cached, because augmentation creates new tiles in each epoch",
            got="; ".join(unlimited),
            expected="images of one tile, with at most flips and quarter turns",
            hint="Slice the images to tiles and switch the other augmentation off; or train without the cache "
            "(distillation.method.ede.cache and distillation.cache_teacher); or cache the tiles of one seed for "
            'several runs, such as those of a study (distillation.cache_scope = "seed").',
        )
    turns = 2 if data.augmentation.flip and data.augmentation.quarter_turns else 1
    return len(images) * turns * (4 if data.augmentation.flip or data.augmentation.quarter_turns else 1)
