"""COCO metrics of a checkpoint or a bundle: the same images, tiles, selection and evaluator whatever computes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.accuracy.evaluated_model import EvaluatedModel, EvaluatedModelRecord
from deploy.accuracy.image_detection import TilingConfig, detect_images
from deploy.accuracy.provenance import DataRecord, EngineRecord, now
from deploy.engines.engine import Engine
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.progress import track
from ifkd.data.coco import CocoDataset, LabeledImage, read_coco
from ifkd.data.metrics import Metrics, evaluate
from ifkd.data.splits import read_split
from ifkd.recipe import Recipe


class Evaluation(Schema):
    """The result of `ifkd evaluate`: how well one detector finds what is labeled."""

    schema_version: Literal[1] = 1
    kind: Literal["evaluation"] = "evaluation"
    created: str
    """UTC, ISO 8601."""
    subject: EvaluatedModelRecord
    data: DataRecord
    engine: EngineRecord
    selection: PostprocessConfig
    """The thresholds that were applied."""
    scale: float
    """Factor by which images were resized."""
    metrics: Metrics
    detections: int
    """Detections over all images."""
    seconds: float
    """Time for reading, inference and selection of all images."""


def evaluate_model(subject: EvaluatedModel, engine: Engine, dataset: CocoDataset, *, batch: int = 4) -> Evaluation:
    """Run a subject's engine over a data set and return its metrics.

    Raises:
        DataError: An image cannot be read.
        EngineError: The engine fails.
    """
    started = time.perf_counter()
    found = detect_dataset(engine, dataset, subject.framing, batch=batch, label=f"evaluate {subject.record.name}")
    seconds = time.perf_counter() - started
    return Evaluation(
        created=now(),
        subject=subject.with_complexity(),
        data=DataRecord.of(dataset),
        engine=EngineRecord.of(engine.info),
        selection=subject.framing.selection,
        scale=subject.framing.scale,
        metrics=evaluate(dataset, found),
        detections=sum(map(len, found.values())),
        seconds=seconds,
    )


def detect_dataset(
    engine: Engine, dataset: CocoDataset, framing: TilingConfig, *, batch: int, label: str
) -> dict[int, Detections]:
    """Return what an engine finds in each image of a data set, by image id."""
    answers = detect_images(engine, dataset.images, framing, batch=min(batch, engine.info.max_batch))
    return {image_id: answer.detections for image_id, answer in track(answers, label, total=len(dataset), unit="img")}


def open_data(
    path: Path | None, *, images: Path | None, recipe: Recipe | None, classes: Sequence[str], needed_by: str
) -> CocoDataset:
    """Return the labeled images to measure on, with labels in the order of the detector's classes.

    Args:
        path: COCO json; by default the test split of the recipe.
        images: Image folder; by default the recipe's, or `images` beside the file.
        recipe: The detector's effective recipe.
        classes: The detector's class names by label.
        needed_by: The verb, for messages.

    Raises:
        DataError: There is no data, it cannot be read, holds no image, or its classes are not the detector's.
    """
    if path is not None:
        dataset = _given(path, images, recipe)
    elif recipe is not None:
        dataset = read_split(recipe.data, "test")
    else:
        raise DataError(
            f"`ifkd {needed_by}` needs labeled images, and the recipe that names a test split is not known",
            hint="Name a COCO json with --data.",
        )
    if not len(dataset):
        raise DataError(f"{dataset.path} lists no image", hint="Name a data set with images.")
    return aligned(dataset, classes)


def aligned(dataset: CocoDataset, classes: Sequence[str]) -> CocoDataset:
    """Return a data set with its labels in the order of `classes`, matched by name.

    Raises:
        DataError: The names differ.
    """
    if set(dataset.classes) != set(classes):
        raise DataError(
            f"The classes of {dataset.path} are not the detector's",
            got=list(dataset.classes),
            expected=list(classes),
            hint="Use data with these classes, or merge classes in the recipe (data.merge_classes).",
        )
    label_of = np.array([list(classes).index(name) for name in dataset.classes], np.int64)
    ids = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    return replace(
        dataset,
        classes=tuple(classes),
        category_ids=tuple(ids[name] for name in classes),
        images=tuple(_relabeled(image, label_of) for image in dataset.images),
    )


def _given(path: Path, images: Path | None, recipe: Recipe | None) -> CocoDataset:
    """Return a data set that was named, its classes merged as in training where it has those classes."""
    names = _category_names(path)
    merge = {} if recipe is None else recipe.data.merge_classes
    merge = {name: into for name, into in merge.items() if name in names and into in names}
    return read_coco(path, images=images, merge_classes=merge)


def _relabeled(image: LabeledImage, label_of: Array) -> LabeledImage:
    return replace(image, labels=label_of[image.labels])


def _category_names(path: Path) -> set[str]:
    """Return the class names of a COCO file; what is wrong with the file is `read_coco`'s to say."""
    try:
        return {category["name"] for category in json.loads(path.read_text(encoding="utf-8"))["categories"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
