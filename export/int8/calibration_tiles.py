"""Tiles for INT8: training tiles for calibration, and labeled validation tiles for the measurement of mAP."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.bundle.manifest import CalibrationRecord
from export.precision.ort_session import open_session
from export.tiles import read_tiles
from ifkd import recipe
from ifkd.core.detections import Array, Candidates
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.data.coco import CocoDataset, align_classes
from ifkd.data.metrics import Metrics, evaluate
from ifkd.data.splits import Split, read_split

ORDER_SEED = 0
HINT = "INT8 needs images with the detector's classes; or remove int8 from export.precisions."


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationTiles:
    """Tiles, uint8 [tiles, 3, height, width], from which activation ranges are computed."""

    pixels: Array
    record: CalibrationRecord


@dataclass(frozen=True, slots=True, eq=False)
class ValidationTiles:
    """Tiles, uint8 [tiles, 3, height, width], on which the mAP of an ONNX file is measured."""

    pixels: Array
    dataset: CocoDataset
    """One image per tile, in the same order."""
    config: PostprocessConfig

    def evaluate(self, path: Path) -> Metrics:
        """Return the COCO metrics of an ONNX file on the CPU.

        Raises:
            EngineError: ONNX Runtime cannot load the file.
        """
        session = open_session(path)
        detections = {}
        for image, tile in zip(self.dataset.images, self.pixels, strict=True):
            candidates = Candidates(*session.run(None, {"tiles": tile[None]}))
            (detections[image.id],) = postprocess(candidates, self.config, size=image.size)
        return evaluate(self.dataset, detections)


def calibration_tiles(
    data: recipe.DataOptions, options: recipe.CalibrationOptions, *, classes: Sequence[str]
) -> CalibrationTiles:
    """Return one tile of each of `options.tiles` training images, always the same ones.

    Raises:
        DataError: The training images cannot be read, or have other classes than the detector's `classes`.
    """
    dataset = _read_aligned(data, "train", classes)
    order = np.random.default_rng(ORDER_SEED).permutation(len(dataset))[: options.tiles]
    images = [dataset.images[index] for index in sorted(order.tolist())]
    pixels = read_tiles(images, data).pixels
    record = CalibrationRecord(
        source=f"{len(images)} of {len(dataset)} training images of {dataset.path.name}",
        image_ids=tuple(image.id for image in images),
        tiles_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        method=options.method,
        percentile=options.percentile if options.method == "percentile" else None,
    )
    return CalibrationTiles(pixels, record)


def validation_tiles(data: recipe.DataOptions, config: PostprocessConfig, *, classes: Sequence[str]) -> ValidationTiles:
    """Return one tile of each validation image with its objects.

    Raises:
        DataError: The validation images cannot be read, or have other classes.
    """
    dataset = _read_aligned(data, "validation", classes)
    tiles = read_tiles(dataset.images, data)
    return ValidationTiles(tiles.pixels, replace(dataset, images=tiles.images), config)


def _read_aligned(data: recipe.DataOptions, split: Split, classes: Sequence[str]) -> CocoDataset:
    dataset = read_split(data, split)
    dataset.require_images()
    return align_classes(dataset, classes, hint=HINT)
