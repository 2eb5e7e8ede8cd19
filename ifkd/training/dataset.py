"""Training images: read, augmented and cut to tiles. Every random choice depends on (seed, epoch, index) alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms.v2 import functional as transforms

from ifkd import recipe
from ifkd.core.detections import Array, box_areas
from ifkd.core.errors import DataError
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.image_files import Imagery, pad, read_image, resize
from ifkd.models import Targets

KEPT_SHARE = 0.4
"""An object cut by a crop stays one when this share of its area is visible; else its rest is ignored."""
LEAST_SPECKLE = 1e-3
"""Deviation of speckle below which nothing would be seen of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training tile."""

    pixels: UInt8[Tensor, "3 height width"]
    targets: Targets
    image_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tiles of one step."""

    pixels: UInt8[Tensor, "batch 3 height width"]
    targets: list[Targets]
    image_ids: list[int]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.targets)


class TileDataset(Dataset[Sample]):
    """A COCO data set as training tiles of one size."""

    def __init__(self, dataset: CocoDataset, config: recipe.DataOptions, *, seed: int) -> None:
        self._images = dataset.images
        self._config = config
        self._seed = seed
        self._kept: dict[int, tuple[Array, Array]] = {}
        self._free_bytes = config.cache_mb * 1_000_000

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the tile of image `index` in `epoch`, given as (epoch, index)."""
        epoch, index = key
        image = self._images[index]
        random = np.random.default_rng((self._seed, epoch, index))
        augmentation = self._config.augmentation
        pixels, boxes = self._scaled(index, random.uniform(*augmentation.scale_jitter))
        pixels, boxes = _turned(pixels, boxes, augmentation, random)
        pixels, boxes, labels, ignored = _cropped(pixels, boxes, image, self._config.tile_px, random)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(ignored))
        tensor = _recolored(tensor, augmentation.photometric, random)
        return Sample(_speckled(tensor, augmentation.speckle, random), targets, image.id)

    def _scaled(self, index: int, zoom: float) -> tuple[Array, Array]:
        """Return an image and its boxes at the recipe's scale times `zoom`; unzoomed ones are kept in memory."""
        if index in self._kept:
            return self._kept[index]
        found = scaled(self._images[index], self._config.scale * zoom, imagery=self._config.imagery)
        if zoom == 1.0 and found[0].nbytes <= self._free_bytes:
            self._free_bytes -= found[0].nbytes
            self._kept[index] = found
        return found


class BatchDataset(Dataset["Batch | DataError"]):
    """Whole batches by the keys of their tiles.

    A DataError is handed over instead of raised: a loading process would wrap it in a traceback of its own.
    """

    def __init__(self, tiles: TileDataset) -> None:
        self._tiles = tiles

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | DataError:
        """Return the tiles of `keys` as a batch, or what is wrong with one of them."""
        try:
            return collate([self._tiles[key] for key in keys])
        except DataError as error:
            return error


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """One process's share of the batches, as (epoch, index), in an order that depends on (seed, epoch) alone.

    The last short batch is left out. Each batch is cut into `ranks * accumulation` equal parts; a process takes every
    `ranks`-th of them, from its own number on, so that all processes together see the batches that one would.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, accumulation: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        assert batch_size % (accumulation * ranks) == 0, (batch_size, accumulation, ranks)
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._parts, self._rank, self._ranks = accumulation * ranks, rank, ranks
        self.epoch = 0
        self.start = 0
        """Batches of the epoch to leave out at its beginning, as they were taken before."""

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return max(1, self._length // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's parts of the current epoch's batches."""
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._length)
        each = self._batch_size // self._parts
        for batch in range(self.start, len(self)):
            for part in range(self._rank, self._parts, self._ranks):
                first = batch * self._batch_size + part * each
                yield [(self.epoch, int(index)) for index in order[first : first + each]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return samples of one tile size as a batch."""
    return Batch(
        torch.stack([sample.pixels for sample in samples]),
        [sample.targets for sample in samples],
        [sample.image_id for sample in samples],
    )


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return an image's (height, width) at `scale`, in whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled(image: LabeledImage, scale: float, *, imagery: Imagery | None = None) -> tuple[Array, Array]:
    """Return an image's pixels and boxes at `scale`, sizes rounded to whole pixels.

    Raises:
        DataError: The file is absent or broken, or its size is not the one the annotations state.
    """
    pixels = read_image(image.path, size=image.size, imagery=imagery)
    size = scaled_size(image.size, scale)
    by_axis = np.array([size[1] / image.size[1], size[0] / image.size[0]] * 2, np.float32)
    return resize(pixels, size), image.boxes * by_axis


def _turned(
    pixels: Array, boxes: Array, augmentation: recipe.AugmentationOptions, random: np.random.Generator
) -> tuple[Array, Array]:
    """Return pixels and boxes after one of the eight symmetries of the square, as far as the recipe allows them."""
    transpose, mirror, upend = random.random(3) < 0.5
    if not augmentation.flip:
        upend = transpose ^ mirror  # a turn is an even number of reflections
    if not augmentation.quarter_turns:
        transpose = False
    if not (augmentation.flip or augmentation.quarter_turns):
        mirror = upend = False
    if transpose:
        pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    if mirror:
        pixels, boxes = pixels[:, ::-1], _reflected(boxes, 0, pixels.shape[1])
    if upend:
        pixels, boxes = pixels[::-1], _reflected(boxes, 1, pixels.shape[0])
    return pixels, boxes


def _reflected(boxes: Array, axis: int, length: int) -> Array:
    boxes = boxes.copy()
    boxes[:, [axis, axis + 2]] = length - boxes[:, [axis + 2, axis]]
    return boxes


def _cropped(
    pixels: Array, boxes: Array, image: LabeledImage, tile_px: int, random: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Return a tile's pixels, boxes, labels and ignored regions; smaller images are padded.

    Three crops in four show an object, when there is one, as empty water teaches little.
    """
    height, width = pixels.shape[:2]
    room = (max(0, height - tile_px), max(0, width - tile_px))
    top, left = (int(random.integers(0, space + 1)) for space in room)
    objects = np.flatnonzero(~image.ignore)
    if max(room) and len(objects) and random.random() < 0.75:
        x1, y1, x2, y2 = boxes[random.choice(objects)].tolist()
        top = _start_around(y1, y2, tile_px, room[0], random)
        left = _start_around(x1, x2, tile_px, room[1], random)
    tile = pad(pixels[top : top + tile_px, left : left + tile_px], (tile_px, tile_px))
    moved = boxes - np.array([left, top, left, top], np.float32)
    cut = moved.clip(0, tile_px)
    share = box_areas(cut) / np.maximum(box_areas(moved), 1e-6)
    whole = share >= KEPT_SHARE
    kept = whole & ~image.ignore
    ignored = (share > 0) & ~kept
    return tile, cut[kept].astype(np.float32), image.labels[kept], cut[ignored].astype(np.float32)


def _start_around(low: float, high: float, tile_px: int, room: int, random: np.random.Generator) -> int:
    """Return a crop's start such that the tile holds [low, high], as far as it fits and the image allows."""
    first, last = sorted((int(high) - tile_px, int(low)))
    return int(np.clip(random.integers(first, last + 1), 0, room))


def _recolored(pixels: Tensor, strength: float, random: np.random.Generator) -> Tensor:
    if strength == 0:
        return pixels
    brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3)
    pixels = transforms.adjust_brightness(pixels, brightness)
    pixels = transforms.adjust_contrast(pixels, contrast)
    return transforms.adjust_saturation(pixels, saturation)


def _speckled(pixels: Tensor, most: float, random: np.random.Generator) -> Tensor:
    """Return pixels times gamma noise of mean 1, whose deviation is drawn up to `most`: a radar's speckle."""
    if most == 0:
        return pixels
    deviation = max(float(random.uniform(0.0, most)), LEAST_SPECKLE)
    gain = random.standard_gamma(deviation**-2, pixels.shape[1:], dtype=np.float32) * np.float32(deviation**2)
    return (pixels * torch.from_numpy(gain)).round().clamp(0, 255).to(torch.uint8)
