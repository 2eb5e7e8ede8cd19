"""Detections of a torch detector on the images of a data set, as used for validation while training."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from ifkd import recipe
from ifkd.compute.distributed import from_all, rank, world_size
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.metrics import Metrics, evaluate
from ifkd.imagery.image_files import pad
from ifkd.models import Detector, normalize
from ifkd.training.dataset import scaled, scaled_size

STRIDE = 32
BATCH_SIZE = 8


def validate(
    detector: Detector, dataset: CocoDataset, data: recipe.DataOptions, selection: PostprocessConfig, *, per_level: int
) -> Metrics:
    """Return a detector's COCO metrics on whole images, padded to a multiple of 32; it is left in its mode.

    Data-parallel ranks share the batches out, and all of them get the metrics that one alone would.
    """
    training = detector.training
    detector.eval()
    try:
        mine = dict(predict(detector, dataset, data, selection, per_level=per_level, share=(rank(), world_size())))
    finally:
        detector.train(training)
    return evaluate(dataset, {image: found for part in from_all(mine) for image, found in part.items()})


def predict(
    detector: Detector,
    dataset: CocoDataset,
    data: recipe.DataOptions,
    selection: PostprocessConfig,
    *,
    per_level: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections in the image's own pixels) of a detector in eval mode.

    `share` (number, of how many) leaves out other ranks' batches; which images form a batch does not depend on it,
    as arithmetic may depend on a batch's company in the last bit.
    """
    for images, pixels in _batches(dataset, data, share):
        detections = detect(detector, pixels, selection, per_level=per_level)
        for image, found in zip(images, detections, strict=True):
            yield image.id, found.scaled(1 / data.scale).clipped(image.size)


def detect(
    detector: Detector, pixels: Sequence[Array], selection: PostprocessConfig, *, per_level: int
) -> list[Detections]:
    """Return what a detector in eval mode finds in images: uint8 [height, width, 3] of one size, sides of 32."""
    tiles = as_batch(pixels).to(next(detector.parameters()).device)
    size = (tiles.shape[2], tiles.shape[3])
    with torch.inference_mode():
        boxes, scores, labels = detector.candidates(detector(normalize(tiles)), size=size, per_level=per_level)
    candidates = Candidates(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy())
    return postprocess(candidates, selection)


def as_batch(pixels: Sequence[Array]) -> UInt8[torch.Tensor, "batch 3 height width"]:
    """Return images, uint8 [height, width, 3] of one size, as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def _batches(
    dataset: CocoDataset, data: recipe.DataOptions, share: tuple[int, int]
) -> Iterator[tuple[list[LabeledImage], list[Array]]]:
    """Yield this share of the batches: images of one padded size, up to eight at a time."""
    by_size: dict[tuple[int, int], list[LabeledImage]] = {}
    for image in dataset.images:
        by_size.setdefault(padded_size(scaled_size(image.size, data.scale)), []).append(image)
    batches = [
        (size, images[first : first + BATCH_SIZE])
        for size, images in by_size.items()
        for first in range(0, len(images), BATCH_SIZE)
    ]
    for size, images in batches[share[0] :: share[1]]:
        yield images, [pad(scaled(image, data.scale, imagery=data.imagery)[0], size) for image in images]


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return an image's (height, width) filled up to multiples of the networks' stride."""
    return -(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE
