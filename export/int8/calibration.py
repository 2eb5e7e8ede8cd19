"""What INT8 is fitted to and judged on: tiles of training images, and of validation images with their labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.bundle.manifest import CalibrationRecord
from export.precision.ort_session import open_session
from export.sample_tiles import cut_tile
from ifkd import recipe
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import DataError
from ifkd.core.postprocess import PostprocessConfig, postprocess
from ifkd.data.coco import CocoDataset
from ifkd.data.metrics import Metrics, evaluate
from ifkd.data.splits import read_split

ORDER_SEED = 0
SHA256_OF_WHAT = "the tiles' pixels, uint8 [tiles, 3, height, width], row by row"


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationTiles:
    """Tiles on which the ranges of activations are found."""

    tiles: Array
    """uint8 [tiles, 3, height, width]."""
    record: CalibrationRecord


@dataclass(frozen=True, slots=True, eq=False)
class LabeledTiles:
    """Tiles on which a file's mAP is measured."""

    tiles: Array
    """uint8 [tiles, 3, height, width]."""
    dataset: CocoDataset
    """One image for each tile, in order."""
    selection: PostprocessConfig

    def score(self, path: Path) -> Metrics:
        """Return the COCO metrics of an ONNX file, run on the CPU.

        Raises:
            EngineError: ONNX Runtime cannot load it.
        """
        session = open_session(path)
        found = {}
        for image, tile in zip(self.dataset.images, self.tiles, strict=True):
            answer = Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tile[None]}))
            (found[image.id],) = postprocess(answer, self.selection, size=image.size)
        return evaluate(self.dataset, found)


def calibration_tiles(
    data: recipe.DataOptions, settings: recipe.CalibrationOptions, *, classes: Sequence[str]
) -> CalibrationTiles:
    """Return a tile of each of some training images, drawn always alike.

    Args:
        data: The recipe's data.
        settings: How many tiles, and the method that is recorded.
        classes: The detector's classes.

    Raises:
        DataError: The training images cannot be read, or show other classes than the detector knows.
    """
    dataset = _aligned(read_split(data, "train"), classes)
    order = np.random.default_rng(ORDER_SEED).permutation(len(dataset))[: settings.tiles]
    images = [dataset.images[index] for index in sorted(order.tolist())]
    size = (data.tile_px, data.tile_px)
    tiles = _stacked([cut_tile(image, data, size).pixels for image in images], size)
    record = CalibrationRecord(
        source=f"{len(images)} of {len(dataset)} training images of {dataset.path.name}",
        image_ids=tuple(image.id for image in images),
        tiles_sha256=hashlib.sha256(tiles.tobytes()).hexdigest(),
        method=settings.method,
        percentile=settings.percentile if settings.method == "percentile" else None,
    )
    return CalibrationTiles(tiles, record)


def validation_tiles(data: recipe.DataOptions, selection: PostprocessConfig, *, classes: Sequence[str]) -> LabeledTiles:
    """Return a tile of every validation image with its labels.

    Raises:
        DataError: They cannot be read, or show other classes than the detector knows.
    """
    dataset = _aligned(read_split(data, "validation"), classes)
    size = (data.tile_px, data.tile_px)
    cut = [cut_tile(image, data, size) for image in dataset.images]
    images = tuple(one.labeled for one in cut)
    return LabeledTiles(_stacked([one.pixels for one in cut], size), replace(dataset, images=images), selection)


def _stacked(pixels: Sequence[Array], size: tuple[int, int]) -> Array:
    if not pixels:
        return np.zeros((0, 3, *size), np.uint8)
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))


def _aligned(dataset: CocoDataset, classes: Sequence[str]) -> CocoDataset:
    if not len(dataset):
        raise DataError(f"{dataset.path} lists no image", hint="INT8 needs images; or leave it out of the precisions.")
    if tuple(dataset.classes) != tuple(classes):
        raise DataError(
            f"The classes of {dataset.path} are not the detector's",
            got=list(dataset.classes),
            expected=list(classes),
            hint="INT8 is fitted to the images the detector learned from; or leave it out of the precisions.",
        )
    return dataset
