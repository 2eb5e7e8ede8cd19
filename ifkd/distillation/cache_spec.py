"""What a cache of a run's tiles depends on, and how many distinct tiles a recipe can make."""

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
"""Values of an augmentation that change nothing; others change nothing when they are 0 or false."""
SYMMETRIES = {"flip", "quarter_turns"}
"""Augmentations of which each image has few results."""


@dataclass(frozen=True, slots=True)
class Draws:
    """By what training draws its tiles: runs that have both in common, and the recipe's data, see the same ones."""

    seed: int
    epochs: int


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Where a run's answers are kept, and of what tiles."""

    folder: Path
    tile_px: int
    """Side of a tile, pixels."""
    tiles: int
    """Distinct tiles that the training set can give."""
    depends_on: dict[str, Any]
    """The images and their preprocessing, as a store's header states them."""
    rebuild: bool = False
    """Replace stores of other networks or images, instead of refusing them."""


def cache_spec_of(
    dataset: CocoDataset, data: recipe.DataOptions, folder: Path, *, rebuild: bool, draws: Draws | None = None
) -> CacheSpec:
    """Return how a run over `dataset` keeps what frozen networks say of its tiles.

    Args:
        dataset: The training images.
        data: Their preprocessing and augmentation.
        folder: Where the caches lie.
        rebuild: Replace caches of something else.
        draws: Keep every tile that training draws by these, for other runs that draw the same; None keeps those that
            come again within a run.

    Raises:
        ConfigError: Without `draws`, augmentation makes new tiles without end.
    """
    names = "\n".join(f"{image.id} {image.path.name} {image.size}" for image in dataset.images)
    depends_on = {
        "images": f"{len(dataset)} of {dataset.path.name}, {hashlib.sha256(names.encode()).hexdigest()[:16]}",
        "scale": data.scale,
        "tile_px": data.tile_px,
        "turns": [name for name in sorted(SYMMETRIES) if getattr(data.augmentation, name)],
        "pillow": pillow_version,
    }
    if draws is None:
        return CacheSpec(folder, data.tile_px, distinct_tiles(dataset.images, data), depends_on, rebuild)
    drawn = {"augmentation": data.augmentation.model_dump(mode="json"), "seed": draws.seed, "epochs": draws.epochs}
    folder = folder / f"seed_{draws.seed}"
    return CacheSpec(folder, data.tile_px, len(dataset) * draws.epochs, depends_on | drawn, rebuild)


def distinct_tiles(images: Sequence[LabeledImage], data: recipe.DataOptions) -> int:
    """Return how many distinct tiles training can see: the images times their flips and quarter turns.

    Raises:
        ConfigError: The augmentation, or random crops of larger images, make new ones without end.
    """
    free = [
        f"data.augmentation.{name} = {getattr(data.augmentation, name)}"
        for name in type(data.augmentation).model_fields
        if name not in SYMMETRIES and getattr(data.augmentation, name) not in (NEUTRAL.get(name), 0, None)
    ]
    larger = sum(round(max(image.size) * data.scale) > data.tile_px for image in images)
    if larger:
        free.append(f"random crops, as {larger} of {len(images)} images are larger than data.tile_px = {data.tile_px}")
    if free:
        raise ConfigError(
            "What frozen networks say cannot be kept, as training makes new tiles without end",
            got="; ".join(free),
            expected="whole images with flips and quarter turns at most",
            hint="Cut the images to tiles beforehand and leave out the rest, or train without the cache "
            "(distillation.method.ede.cache and distillation.cache_teacher); or keep them for other runs of the same "
            'seed, as a study has them (distillation.cache_scope = "seed").',
        )
    turns = 2 if data.augmentation.flip and data.augmentation.quarter_turns else 1
    return len(images) * turns * (4 if data.augmentation.flip or data.augmentation.quarter_turns else 1)
