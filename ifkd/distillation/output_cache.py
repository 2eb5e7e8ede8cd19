"""Cache of a frozen network's outputs for tiles, and its location, key and capacity."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import __version__ as pillow_version
from torch import Tensor, nn

from ifkd import recipe
from ifkd.core.errors import CheckpointError, ConfigError
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.distillation.record_store import RecordStore
from ifkd.imagery.image_tiles import scaled_size

Compute = Callable[[list[int]], Sequence[Tensor]]
"""Rows of a batch -> the network's output maps for them."""
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

    With `sampling`, every tile of the run is cached, for other runs with the same sampling; else only tiles that recur
    within a run.

    Raises:
        ConfigError: Without `sampling`, the augmentation has an unlimited number of results.
    """
    names = "\n".join(f"{image.id} {image.path.name} {image.size}" for image in dataset.images)
    depends_on = {
        "images": f"{len(dataset)} of {dataset.path.name}, {hashlib.sha256(names.encode()).hexdigest()[:16]}",
        "scale": data.scale,
        "tile_px": data.tile_px,
        "imagery": data.imagery.model_dump(mode="json", exclude={"max_pixels"}),
        "turns": [name for name in sorted(SYMMETRIES) if getattr(data.augmentation, name)],
        "pillow": pillow_version,
    }
    if sampling is None:
        return CacheSpec(folder, data.tile_px, count_distinct_tiles(dataset.images, data), depends_on, rebuild)
    augmentation = data.augmentation.model_dump(mode="json")
    boxes = b"".join(image.boxes.tobytes() + image.ignore.tobytes() for image in dataset.images)  # crops contain them
    depends_on |= {"augmentation": augmentation, "seed": sampling.seed, "epochs": sampling.epochs}
    depends_on["boxes"] = hashlib.sha256(boxes).hexdigest()[:16]
    folder = folder / f"seed_{sampling.seed}"
    return CacheSpec(folder, data.tile_px, len(dataset) * sampling.epochs, depends_on, rebuild)


def count_distinct_tiles(images: Sequence[LabeledImage], data: recipe.DataOptions) -> int:
    """Return the number of distinct training tiles: the images times their flips and quarter turns.

    Raises:
        ConfigError: The augmentation, or random crops of larger images, have an unlimited number of results.
    """
    augmentation = data.augmentation
    unlimited = [
        f"data.augmentation.{name} = {value}"
        for name, value in augmentation
        if name not in SYMMETRIES and value not in (NEUTRAL.get(name), 0, None)
    ]
    larger = sum(max(scaled_size(image.size, data.scale)) > data.tile_px for image in images)
    if larger:
        crops = f"random crops, as {larger} of {len(images)} images are larger than data.tile_px = {data.tile_px}"
        unlimited.append(crops)
    if unlimited:
        raise ConfigError(
            "Teacher outputs cannot be cached, because augmentation creates new tiles in each epoch",
            got="; ".join(unlimited),
            expected="images of one tile, with at most flips and quarter turns",
            hint="Slice the images to tiles and switch the other augmentation off; or train without the cache "
            "(distillation.method.ede.cache and distillation.cache_teacher); or cache the tiles of one seed for "
            'several runs, such as those of a study (distillation.cache_scope = "seed").',
        )
    return len(images) * (1, 4, 8)[augmentation.flip + augmentation.quarter_turns]


class OutputCache:
    """Output maps of a network for tiles, on disk in float16.

    New outputs are rounded to float16 as well, so that results do not depend on the state of the cache.
    """

    def __init__(self, name: str, network: nn.Module, shapes: Sequence[tuple[int, ...]], spec: CacheSpec) -> None:
        """Open or create the cache `name` of output maps of these shapes; it depends on the network's weights."""
        self._name, self._shapes = name, [tuple(shape) for shape in shapes]
        self._sizes = [math.prod(shape) for shape in shapes]
        digest = hashlib.sha256()
        for key, value in network.state_dict().items():
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        depends_on = {"network": f"{name} {digest.hexdigest()[:16]}", "shapes": list(map(list, shapes))}
        depends_on |= spec.depends_on
        self.store = RecordStore(
            spec.folder / name, depends_on, values=sum(self._sizes), capacity=spec.max_tiles, rebuild=spec.rebuild
        )

    def get_or_compute(self, keys: Sequence[bytes], compute: Compute, device: torch.device) -> list[Tensor]:
        """Return the maps of a batch in float32; maps of missing keys are computed and stored.

        Raises:
            CheckpointError: An output is out of the range of float16.
            OutputError: The cache cannot be written.
        """
        records = self.store.find(keys)
        missing = [row for row, record in enumerate(records) if record is None]
        if missing:
            with torch.autocast(device.type, enabled=False):
                outputs = torch.cat([part.flatten(1) for part in compute(missing)], dim=1).to(torch.float16)
            if not outputs.isfinite().all():
                raise CheckpointError(
                    f"Outputs of {self._name} are out of the range of float16 and cannot be cached",
                    hint="Train without the cache: distillation.cache_teacher = false, "
                    "distillation.method.ede.cache = false.",
                )
            computed = outputs.cpu().numpy()
            self.store.add([keys[row] for row in missing], computed)
            for row, record in zip(missing, computed, strict=True):
                records[row] = record
        batch = torch.from_numpy(np.stack([record for record in records if record is not None])).to(device)
        parts = zip(torch.split(batch, self._sizes, dim=1), self._shapes, strict=True)
        return [part.float().view(len(keys), *shape) for part, shape in parts]


def tile_keys(pixels: UInt8[Tensor, "batch 3 height width"]) -> list[bytes]:
    """Return the SHA-256 of each tile's pixels."""
    return [hashlib.sha256(tile.tobytes()).digest() for tile in pixels.contiguous().cpu().numpy()]
