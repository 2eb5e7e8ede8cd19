"""Predict detections of a data set's images with a torch detector, and validate them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from ifkd.compute.distributed import gather_from_all, rank, world_size
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.core.tiling import TileGrid
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.metrics import Metrics, evaluate
from ifkd.imagery.image_files import pad
from ifkd.imagery.image_tiles import scaled_size
from ifkd.models import Detector, normalize
from ifkd.recipe import Recipe
from ifkd.training.dataset import load_scaled

STRIDE = 32
BATCH_SIZE = 8


def validate(detector: Detector, dataset: CocoDataset, recipe: Recipe) -> Metrics:
    """Return a detector's COCO metrics on complete images; its train or eval mode is restored.

    Data-parallel ranks split the batches, and each rank gets the metrics of all images.
    """
    was_training = detector.training
    detector.eval()
    try:
        detections = dict(predict(detector, dataset, recipe, shard=(rank(), world_size())))
    finally:
        detector.train(was_training)
    return evaluate(dataset, {key: value for part in gather_from_all(detections) for key, value in part.items()})


def predict(
    detector: Detector, dataset: CocoDataset, recipe: Recipe, *, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections in pixels of the original image) of a detector in eval mode.

    Images are processed whole; the limits of candidates and detections, which are those of a tile, grow with the size.
    `shard` is (index, count) of the batches to process. The images of a batch do not depend on it, because other
    images of a batch can change the last bit of a result.
    """
    data = recipe.data
    by_size: dict[tuple[int, int], list[LabeledImage]] = defaultdict(list)
    for image in dataset.images:
        by_size[padded_size(scaled_size(image.size, data.scale))].append(image)
    groups = by_size.items()
    batches = [(size, group[at : at + BATCH_SIZE]) for size, group in groups for at in range(0, len(group), BATCH_SIZE)]
    for size, images in batches[shard[0] :: shard[1]]:
        pixels = [pad(load_scaled(image, data.scale, imagery=data.imagery)[0], size) for image in images]
        tiles = len(TileGrid(size, (data.tile_px, data.tile_px), 0))
        limit = tiles * recipe.postprocess.max_detections
        config = recipe.postprocess.model_copy(update={"max_detections": limit})
        detections = detect(detector, pixels, config, per_level=tiles * recipe.export.candidates_per_level)
        for image, found in zip(images, detections, strict=True):
            yield image.id, found.resized(scaled_size(image.size, data.scale), image.size).clipped(image.size)


def predict_tiles(detector: Detector, dataset: CocoDataset, recipe: Recipe) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections in pixels of the original image) of a detector in eval mode in tiles of the images.

    Tiles are as those of a scene: of `data.tile_px`, padded, and overlapping by `export.overlap_px`. Their detections
    are not merged, so an object may have several.
    """
    data = recipe.data
    side, config, per_level = data.tile_px, recipe.postprocess, recipe.export.candidates_per_level
    for image in dataset.images:
        pixels = load_scaled(image, data.scale, imagery=data.imagery)[0]
        size = pixels.shape[:2]
        windows = list(TileGrid(size, (side, side), recipe.export.overlap_px))
        parts = []
        for start in range(0, len(windows), BATCH_SIZE):
            some = windows[start : start + BATCH_SIZE]
            tiles = [pad(pixels[one.top : one.bottom, one.left : one.right], (side, side)) for one in some]
            found = detect(detector, tiles, config, per_level=per_level)
            parts += [
                each.translated(dx=float(one.left), dy=float(one.top)) for one, each in zip(some, found, strict=True)
            ]
        yield image.id, Detections.concatenate(parts).clipped(size).resized(size, image.size)


def detect(
    detector: Detector, pixels: Sequence[Array], config: PostprocessConfig, *, per_level: int
) -> list[Detections]:
    """Return a detector's detections, in eval mode, in images [height, width, 3] of one size divisible by `STRIDE`.

    `per_level` is the number of candidates per pyramid level.
    """
    images = as_batch(pixels).to(next(detector.parameters()).device)
    size = images.shape[2], images.shape[3]
    with torch.inference_mode():
        found = detector.candidates(detector(normalize(images)), size=size, per_level=per_level)
    return postprocess(Candidates(*(values.cpu().numpy() for values in found)), config)


def as_batch(pixels: Sequence[Array]) -> UInt8[torch.Tensor, "batch 3 height width"]:
    """Return images, uint8 [height, width, 3] of one size, as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) rounded up to multiples of the networks' stride."""
    return -(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE
