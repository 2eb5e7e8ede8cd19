"""Detections of a torch detector on the images of a data set, as used for validation while training."""

from collections.abc import Iterator

import numpy as np
import torch

from ifkd import recipe
from ifkd.data.coco import CocoDataset, LabelledImage
from ifkd.data.dataset import scaled
from ifkd.data.evaluation import Metrics, evaluate
from ifkd.data.imagery import pad
from ifkd.detections import Array, Candidates, Detections
from ifkd.detectors import Detector, normalise
from ifkd.postprocess import Selection, select_detections

STRIDE = 32
BATCH_SIZE = 8


def validate(
    detector: Detector, dataset: CocoDataset, data: recipe.Data, selection: Selection, *, per_level: int
) -> Metrics:
    """Return a detector's COCO metrics on whole images, padded to a multiple of 32; it is left in its mode."""
    training = detector.training
    detector.eval()
    try:
        found = dict(predict(detector, dataset, data, selection, per_level=per_level))
    finally:
        detector.train(training)
    return evaluate(dataset, found)


def predict(
    detector: Detector, dataset: CocoDataset, data: recipe.Data, selection: Selection, *, per_level: int
) -> Iterator[tuple[int, Detections]]:
    """Yield (image id, detections in the image's own pixels) of a detector in eval mode."""
    device = next(detector.parameters()).device
    for images, pixels in _batches(dataset, data):
        tiles = torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))).to(device)
        size = (tiles.shape[2], tiles.shape[3])
        with torch.inference_mode():
            boxes, scores, labels = detector.candidates(detector(normalise(tiles)), size=size, per_level=per_level)
        candidates = Candidates(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy())
        for image, found in zip(images, select_detections(candidates, selection), strict=True):
            yield image.id, found.scaled(1 / data.scale).clipped(image.size)


def _batches(dataset: CocoDataset, data: recipe.Data) -> Iterator[tuple[list[LabelledImage], list[Array]]]:
    """Yield images of one padded size, up to eight at a time."""
    waiting: dict[tuple[int, int], tuple[list[LabelledImage], list[Array]]] = {}
    for image in dataset.images:
        pixels, _ = scaled(image, data.scale)
        size = (-(-pixels.shape[0] // STRIDE) * STRIDE, -(-pixels.shape[1] // STRIDE) * STRIDE)
        images, canvases = waiting.setdefault(size, ([], []))
        images.append(image)
        canvases.append(pad(pixels, size))
        if len(images) == BATCH_SIZE:
            yield waiting.pop(size)
    yield from waiting.values()
