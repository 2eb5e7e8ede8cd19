"""Train the screen of a recipe from its labels and, if given, from the detections of a teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifkd import __version__
from ifkd.compute.device import best_device
from ifkd.core.detections import Detections, covered_by_larger, pairwise_iou
from ifkd.core.errors import CheckpointError, TrainingError
from ifkd.core.files import sha256_of
from ifkd.core.postprocess import PIECE_INSIDE, one_of_each
from ifkd.core.progress import track
from ifkd.data.coco import CocoDataset, LabeledImage
from ifkd.data.metrics import Metrics
from ifkd.data.oriented_metrics import object_outlines
from ifkd.data.splits import read_split
from ifkd.imagery.image_tiles import scaled_size
from ifkd.models import TaskNetwork
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe import DataOptions, Recipe
from ifkd.screen.checkpoint import ScreenMeta
from ifkd.screen.network import STRIDE, Screen
from ifkd.training.optim import check_training
from ifkd.training.pipelines import DATA_KEYS_WITHOUT_EFFECT, remove_run
from ifkd.training.prediction import predict_tiles
from ifkd.training.run_folder import RunFolder, TrainingResult, TrainingRun
from ifkd.training.trainer import train

SAME_OBJECT_IOU = 0.5
"""A detection of the teacher with a higher IoU with a label adds nothing."""


def train_screen(recipe: Recipe, folder: Path, *, teacher: Path | None = None, resume: bool = True) -> TrainingResult:
    """Train the recipe's screen and return the run's result; the last checkpoint is the best.

    The validation images take no part in the training and choose no checkpoint, so they can calibrate the threshold. An
    earlier run in `folder` is resumed, or deleted first with `resume=False`.

    Raises:
        CheckpointError: The teacher is missing, or was trained at another scale.
        DataError: The data cannot be read.
        TrainingError: There are fewer images than one batch.
    """
    train_data, options = read_split(recipe.data, "train"), recipe.screen
    check_training(options.training, best_device())
    train_data.require_images()
    if (count := len(train_data)) < (size := options.batch_size):
        problem = f"{recipe.data.train} has fewer images than one batch of screen.batch_size"
        raise TrainingError(problem, got=count, expected=f"at least {size}")
    provenance = {
        "role": "screen",
        "seed": recipe.seed,
        "train_sha256": sha256_of(train_data.path),
        **({} if teacher is None else {"teacher_sha256": sha256_of(teacher), "teacher_search": _search(recipe)}),
        "data": recipe.data.model_dump(mode="json", exclude_none=True, exclude=DATA_KEYS_WITHOUT_EFFECT),
        "versions": {"ifkd": __version__, "torch": str(torch.__version__)},
    }
    run_folder = RunFolder(folder)
    if not resume:
        remove_run(run_folder)
    if teacher is not None and not run_folder.is_finished:
        train_data = add_detections(train_data, teacher, recipe)
    data = screen_data(recipe, train_data.images)
    run = TrainingRun(
        folder=run_folder,
        label=f"{recipe.name} screen",
        recipe=recipe.model_copy(update={"data": data}),
        training=options.training,
        meta=ScreenMeta(recipe=recipe, provenance=provenance, screen=options),
        train_data=train_data,
        validation_data=read_split(recipe.data, "validation"),
        validate=_not_validated,
    )
    run_folder.require_settings(run.meta)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        screen = Screen(options)
    return train(run, screen)


def screen_data(recipe: Recipe, images: tuple[LabeledImage, ...]) -> DataOptions:
    """Return how training tiles are loaded: at the screen's scale, and no larger than the largest image.

    A tile has as many pixels as the detector's, and thus shows far more sea around an object.
    """
    scale = recipe.data.scale * recipe.screen.scale
    side = max(max(scaled_size(image.size, scale)) for image in images)
    tile_px = min(recipe.data.tile_px, -(-side // STRIDE) * STRIDE)
    return recipe.data.model_copy(update={"scale": scale, "tile_px": tile_px})


def add_detections(dataset: CocoDataset, teacher: Path, recipe: Recipe) -> CocoDataset:
    """Return a data set that also has the teacher's detections as objects, at the places without a label.

    Images are searched as scenes are, in tiles.

    Raises:
        CheckpointError: The teacher is missing, or was trained at another scale.
    """
    checkpoint = load_checkpoint(teacher)
    if (scale := checkpoint.meta.recipe.data.scale) != recipe.data.scale:
        problem = f"The teacher {teacher} was trained at another scale than the recipe's"
        raise CheckpointError(problem, got=scale, expected=recipe.data.scale)
    found = predict_tiles(build_from(checkpoint).to(best_device()), dataset, recipe)
    detections = dict(track(found, "detecting by the teacher", total=len(dataset), unit="image"))
    images = [with_detections(one, detections[one.id], score=recipe.screen.teacher_score) for one in dataset.images]
    return replace(dataset, images=tuple(images))


def with_detections(image: LabeledImage, found: Detections, *, score: float) -> LabeledImage:
    """Return an image with the detections of at least this score as objects, where no label or region is."""
    found = one_of_each(found.select(found.scores >= score), iou_threshold=SAME_OBJECT_IOU)
    objects = image.boxes if found.oriented is None else object_outlines(image)
    shown = pairwise_iou(found.outlines, objects).max(axis=1, initial=0.0) >= SAME_OBJECT_IOU
    everything = np.concatenate([objects, found.outlines])
    shown |= covered_by_larger(everything)[len(objects) :] >= PIECE_INSIDE
    added = found.boxes[~shown]
    count = len(added)
    return replace(
        image,
        boxes=np.concatenate([image.boxes, added]),
        labels=np.concatenate([image.labels, np.zeros(count, np.int64)]),  # a screen knows no classes
        ignore=np.concatenate([image.ignore, np.zeros(count, bool)]),
        oriented=None,
    )


def _search(recipe: Recipe) -> dict[str, Any]:
    """Return the options of the recipe on which the detections of a teacher depend."""
    options = recipe.export
    search = {"overlap_px": options.overlap_px, "candidates_per_level": options.candidates_per_level}
    return {**search, "postprocess": recipe.postprocess.model_dump(mode="json")}


def _not_validated(_screen: TaskNetwork, dataset: CocoDataset, _recipe: Recipe) -> Metrics:
    """Return no metrics: the loss at each threshold is measured at the export."""
    return Metrics(mean_ap=None, ap50=None, ap75=None, images=len(dataset), objects=0, per_class={})
