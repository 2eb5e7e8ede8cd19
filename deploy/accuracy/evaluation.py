"""Evaluate a checkpoint or a bundle on labeled images by COCO metrics.

All engines share images, tiles, postprocessing and evaluator, so that their metrics can be compared.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from deploy.accuracy.evaluated_model import EvaluatedModel, EvaluatedModelRecord
from deploy.accuracy.image_detection import ImageResult, TilingConfig, detect_images
from deploy.accuracy.provenance import DataRecord, EngineRecord, now
from deploy.engines.engine import Engine
from ifkd.core.config import Schema
from ifkd.core.errors import DataError, UsageError
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.progress import track
from ifkd.data.coco import CocoDataset, align_classes, read_annotations, read_coco
from ifkd.data.metrics import BoxKind, Metrics, evaluate
from ifkd.data.splits import read_split
from ifkd.recipe import Recipe
from ifkd.recipe.recipe import locate_data


class Evaluation(Schema):
    """The result of `ifkd evaluate` on labeled images."""

    schema_version: Literal[2] = 2
    kind: Literal["evaluation"] = "evaluation"
    created: str
    """UTC, ISO 8601."""
    model: EvaluatedModelRecord
    data: DataRecord
    engine: EngineRecord
    postprocess: PostprocessConfig
    scale: float
    """Factor by which the images were resized."""
    metrics: Metrics
    detections: int
    """Detections in all images."""
    seconds: float
    """Duration of reading, inference and postprocessing of all images."""


def evaluate_model(
    model: EvaluatedModel, engine: Engine, dataset: CocoDataset, *, batch: int = 4, boxes: BoxKind | None = None
) -> Evaluation:
    """Run an engine of a model on a data set and return the metrics; for `boxes` see `ifkd.data.metrics.evaluate`.

    Raises:
        DataError: An image cannot be read, or the objects have no oriented boxes.
        EngineError: Inference fails.
    """
    started = time.perf_counter()
    results = detect_dataset(engine, dataset, model.tiling, batch=batch, label=f"evaluate {model.record.name}")
    seconds = time.perf_counter() - started
    detections = {image_id: result.detections for image_id, result in results.items()}
    return Evaluation(
        created=now(),
        model=model.with_flops(),
        data=DataRecord.of(dataset),
        engine=EngineRecord.of(engine.info),
        postprocess=model.tiling.postprocess,
        scale=model.tiling.scale,
        metrics=evaluate(dataset, detections, boxes=boxes, every_measure=True),
        detections=sum(map(len, detections.values())),
        seconds=seconds,
    )


def detect_dataset(
    engine: Engine, dataset: CocoDataset, tiling: TilingConfig, *, batch: int, label: str, **options: Any
) -> dict[int, ImageResult]:
    """Return the results of `detect_images` by image id; `label` names the progress bar."""
    results = detect_images(engine, dataset.images, tiling, batch=min(batch, engine.info.max_batch), **options)
    return dict(track(results, label, total=len(dataset), unit="img"))


def open_data(
    path: Path | None,
    *,
    images: Path | None,
    recipe: Recipe | None,
    classes: Sequence[str],
    command: str,
    overrides: Sequence[str] = (),
) -> CocoDataset:
    """Return the labeled images to evaluate on, with labels in the order of the detector's `classes`.

    Args:
        path: COCO json; by default the test split of the recipe.
        images: Image folder; by default that of the recipe, or `images` beside the file.
        recipe: The effective recipe of the detector.
        classes: Class names by label.
        command: The calling command, for messages.
        overrides: `KEY=VALUE` of the recipe, where its data moved; see `locate_data`.

    Raises:
        DataError: No data is given, it cannot be read, lists no image, or has other classes than the detector.
    """
    if path is not None:
        if overrides:
            problem = "The data are named twice, by --data and in the recipe"
            raise UsageError(problem, got=" ".join(overrides), hint="Omit one of them.")
        dataset = _read_merged(path, images, recipe)
    elif recipe is not None:
        dataset = read_split(locate_data(recipe, overrides).data, "test")
    else:
        problem = f"`ifkd {command}` needs labeled images, and no recipe states a test split"
        raise DataError(problem, hint="Name a COCO json with --data.")
    dataset.require_images()
    return align_classes(dataset, classes)


def _read_merged(path: Path, images: Path | None, recipe: Recipe | None) -> CocoDataset:
    """Read a COCO file; where it has the classes before merging, merge them as in training."""
    names = _category_names(path)
    merge = {} if recipe is None else recipe.data.merge_classes
    merge = {name: into for name, into in merge.items() if name in names and into in names}
    return read_coco(path, images=images, merge_classes=merge)


def _category_names(path: Path) -> set[str]:
    """Return the class names of a COCO file; empty for an invalid file, which `read_coco` reports."""
    try:
        return {category["name"] for category in read_annotations(path)["categories"]}
    except (DataError, KeyError, TypeError):
        return set()
