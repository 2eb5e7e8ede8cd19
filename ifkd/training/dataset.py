"""Load training tiles and batches. Random choices depend on the seed, the epoch and the image index only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ifkd.core.detections import Array, resize_boxes
from ifkd.core.errors import DataError
from ifkd.core.oriented_boxes import resize as resize_oriented
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image, resize
from ifkd.imagery.image_tiles import scaled_size
from ifkd.models import Targets
from ifkd.recipe import DataOptions
from ifkd.training.augmentation import LabeledPixels, add_speckle, color_jitter, crop, flip_and_rotate


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training tile."""

    pixels: UInt8[Tensor, "3 height width"]
    targets: Targets
    image_id: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The tiles of one forward pass."""

    pixels: UInt8[Tensor, "batch 3 height width"]
    targets: list[Targets]
    image_ids: list[int]


class TileDataset(Dataset[Sample]):
    """Augmented training tiles of a COCO data set.

    The targets of an `oriented` detector have oriented boxes, which all objects of the data set must have.
    """

    def __init__(self, dataset: CocoDataset, options: DataOptions, *, seed: int, oriented: bool = False) -> None:
        if oriented:
            dataset.require_oriented()
        self._images, self._options, self._seed, self._oriented = dataset.images, options, seed, oriented
        self._cache: dict[int, LabeledPixels] = {}
        self._free_cache_bytes = options.cache_mb * 1_000_000

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the tile of image `index` in `epoch`, given as (epoch, index)."""
        epoch, index = key
        labeled, augmentation = self._images[index], self._options.augmentation
        rng = np.random.default_rng((self._seed, epoch, index))
        image = self._load(index, rng.uniform(*augmentation.scale_jitter))
        image = flip_and_rotate(image, augmentation, rng)
        cut = crop(image, labeled.ignore, self._options.tile_px, rng)
        tile = torch.from_numpy(np.ascontiguousarray(cut.image.pixels.transpose(2, 0, 1)))
        tile = add_speckle(color_jitter(tile, augmentation.photometric, rng), augmentation.speckle, rng)
        boxes, oriented = cut.image.boxes, cut.image.oriented
        parts = [boxes[cut.is_object], labeled.labels[cut.is_object], boxes[cut.is_ignored]]
        parts += [] if oriented is None else [oriented[cut.is_object]]
        return Sample(tile, Targets(*map(torch.from_numpy, parts)), labeled.id)

    def _load(self, index: int, scale_jitter: float) -> LabeledPixels:
        """Return an image and its boxes at the recipe's scale times `scale_jitter`; a factor of 1 is cached."""
        if index in self._cache:
            return self._cache[index]
        labeled, scale = self._images[index], self._options.scale * scale_jitter
        pixels, boxes = load_scaled(labeled, scale, imagery=self._options.imagery)
        oriented = np.full((len(boxes), 5), np.nan, np.float32) if labeled.oriented is None else labeled.oriented
        scaled = resize_oriented(oriented, labeled.size, pixels.shape[:2]) if self._oriented else None
        loaded = LabeledPixels(pixels, boxes, scaled)
        if scale_jitter == 1.0 and pixels.nbytes <= self._free_cache_bytes:
            self._free_cache_bytes -= pixels.nbytes
            self._cache[index] = loaded
        return loaded


class BatchDataset(Dataset["Batch | DataError"]):
    """Batches of training tiles; a DataError is returned, because a loading process would wrap it if it were raised."""

    def __init__(self, tiles: TileDataset) -> None:
        self._tiles = tiles

    def __getitem__(self, keys: list[tuple[int, int]]) -> Batch | DataError:
        try:
            return collate([self._tiles[key] for key in keys])
        except DataError as error:
            return error


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """This rank's parts of the shuffled batches of an epoch, as (epoch, index); an incomplete last batch is dropped.

    Rank r takes parts r, r + ranks, … of the equal parts of a batch, so all ranks together process what one would.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, accumulation_steps: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        assert batch_size % (accumulation_steps * ranks) == 0, (batch_size, accumulation_steps, ranks)
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._parts, self._rank, self._ranks = accumulation_steps * ranks, rank, ranks
        self.epoch = 0
        self.start = 0  # batches to skip at the beginning of the epoch, when a run resumes within it

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return max(1, self._length // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._length)
        for batch in range(self.start, len(self)):
            parts = order[batch * self._batch_size :][: self._batch_size].reshape(self._parts, -1)
            for part in parts[self._rank :: self._ranks]:
                yield [(self.epoch, index) for index in part.tolist()]


def collate(samples: Sequence[Sample]) -> Batch:
    """Return samples of one tile size as a batch."""
    pixels = torch.stack([sample.pixels for sample in samples])
    return Batch(pixels, [sample.targets for sample in samples], [sample.image_id for sample in samples])


def load_scaled(image: LabeledImage, scale: float, *, imagery: ImageryOptions | None = None) -> tuple[Array, Array]:
    """Return an image's pixels and boxes resized by `scale`, to a size rounded to pixels.

    Raises:
        DataError: The file is missing or broken, or its size differs from the annotated size.
    """
    pixels = read_image(image.path, size=image.size, imagery=imagery)
    size = scaled_size(image.size, scale)
    return resize(pixels, size), resize_boxes(image.boxes, image.size, size)
