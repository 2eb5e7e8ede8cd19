"""Train the teacher or the student of a recipe alone, or distill the student from the teacher."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ifkd import __version__
from ifkd.compute.device import best_device
from ifkd.compute.distributed import broadcast_from_first, rank
from ifkd.core.errors import CheckpointError, OutputError, TrainingError
from ifkd.core.files import require_writable, sha256_of
from ifkd.data.coco import CocoDataset, align_classes
from ifkd.data.splits import read_split
from ifkd.distillation import FrozenModels, TileSampling, make_cache_spec
from ifkd.distillation.frozen_models import measure_feature_rms
from ifkd.distillation.methods import Method, NetworkPair, build_method
from ifkd.distillation.methods.fgd import inherit
from ifkd.imagery.image_values import IMAGE_VALUES_KEY, image_values
from ifkd.models import Detector, FasterRcnn, build_detector, normalize
from ifkd.models.checkpoint import Checkpoint, CheckpointMeta, build_from, load_checkpoint
from ifkd.models.mobile_sam.encoder import available_weights, read_mobile_sam
from ifkd.recipe import (
    EQUAL_WIDTHS,
    BalanceOptions,
    DetectorOptions,
    FgdOptions,
    IfkdOptions,
    MethodOptions,
    NoDistillationOptions,
    Recipe,
)
from ifkd.recipe.recipe import RoleOptions
from ifkd.training.dataset import EpochSampler, TileDataset, collate
from ifkd.training.optim import check_training
from ifkd.training.prediction import validate
from ifkd.training.run_folder import RunFolder, TrainingResult, TrainingRun
from ifkd.training.trainer import train

logger = logging.getLogger(__name__)

SMALL_OBJECT = 0.9
"""Median side of the objects, relative to that of the smallest anchor, below which smaller anchors are proposed."""
CALIBRATION_BATCHES = 8
"""Batches that measure the RMS of the teacher's features."""
COPIES_ON_DISK = 6
"""Size of a run's files over that of the weights: two checkpoints, a state with an optimizer, a temporary file."""
DATA_KEYS_WITHOUT_EFFECT = {"root", "images", "cache_mb", "workers", "sensor", "license"}
TRAINING_KEYS_WITHOUT_EFFECT = {"log_every", "save_every_minutes"}
"""Options that do not affect the weights, and may change when a run resumes."""
RANDOM_ENCODER_NOTE, NO_ENCODER_NOTE = (
    f"EDE used MobileSAM's network with seeded random weights{reason}. It adds no knowledge about images in this run."
    for reason in ("", ", because the published checkpoint is not installed")
)


def train_role(
    recipe: Recipe, role: Literal["teacher", "student"], folder: Path, *, resume: bool = True
) -> TrainingResult:
    """Train the recipe's teacher or student alone, and return the run's result.

    An earlier run in `folder` is resumed, or deleted first with `resume=False`.
    """
    options = recipe.teacher if role == "teacher" else recipe.student
    run = _plan_run(recipe, folder, role, options, {"role": role, "method": "none"})
    return train(*_start_run(run, resume=resume))


def distill_student(recipe: Recipe, teacher_checkpoint: Path, folder: Path, *, resume: bool = True) -> TrainingResult:
    """Train the recipe's student with its distillation method, and return the run's result.

    The student starts from the same weights as in plain training with the same seed, except that FGD can copy some
    weights of the teacher. An earlier run in `folder` is resumed, or deleted first with `resume=False`.

    Raises:
        CheckpointError: The teacher is missing, or has another family, classes, anchors or form of boxes.
        TrainingError: The teacher's validation mAP is below `distillation.min_teacher_map`.
    """
    checkpoint = load_checkpoint(teacher_checkpoint)
    options, notes = _with_available_encoder(recipe.distillation.method)
    balance = recipe.distillation.balance
    provenance: dict[str, Any] = {
        "role": "student",
        "method": options.model_dump(mode="json", exclude_none=True),
        "teacher": str(teacher_checkpoint),
        "teacher_sha256": sha256_of(teacher_checkpoint),
        **({"cached_teacher": True} if recipe.distillation.cache_teacher else {}),
        **({"balance": balance.model_dump(mode="json")} if balance != BalanceOptions() else {}),
        "notes": notes,
    }
    role = recipe.student.model_copy(update={"training": recipe.distillation.training})
    run = _plan_run(recipe, folder, "student distilled", role, provenance)
    assert isinstance(run.meta, CheckpointMeta)
    _check_teacher_checkpoint(checkpoint, run.meta)
    run, student = _start_run(run, resume=resume)
    if broadcast_from_first(run.folder.is_finished):
        return train(run, student)
    teacher = build_from(checkpoint).to(best_device())
    _check_teacher_map(teacher, run)
    method = _build_method(options, student, teacher, run)
    frozen_models = None if isinstance(options, NoDistillationOptions) else _build_frozen_models(options, teacher, run)
    return train(run, student, method=method, frozen_models=frozen_models)


def feature_rms(teacher: Detector, train_data: CocoDataset, recipe: Recipe) -> tuple[float, ...]:
    """Return the RMS of the teacher's features at each level over the first batches of the distillation."""
    dataset = TileDataset(train_data, recipe.data, seed=recipe.seed)
    sampler = EpochSampler(len(train_data), recipe.distillation.training.batch_size, seed=recipe.seed)
    keys = list(sampler)[:CALIBRATION_BATCHES]
    batches = [normalize(collate([dataset[key] for key in batch]).pixels.to(best_device())) for batch in keys]
    return measure_feature_rms(teacher, batches)


def _build_method(options: MethodOptions, student: Detector, teacher: Detector, run: TrainingRun) -> Method:
    """Return the method with its initial layers; FGD may copy weights of the teacher to the student."""
    scaled = getattr(options, "feature_scale", "none") == "auto"
    networks = NetworkPair(
        channels=student.config.channels,
        teacher_channels=teacher.config.channels,
        levels=student.config.levels,
        feature_rms=feature_rms(teacher, run.train_data, run.recipe) if scaled else (),
        second_stage=teacher.classify if isinstance(teacher, FasterRcnn) else None,
        detectors=(student, teacher),
    )
    if isinstance(options, FgdOptions) and options.inherit:
        inherit(student, teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.recipe.seed + 1)
        return build_method(options, networks)


def _build_frozen_models(options: MethodOptions, teacher: Detector, run: TrainingRun) -> FrozenModels:
    """Return the frozen models of a run; their caches are beside the run's folder, for other runs."""
    ede = options.ede if isinstance(options, IfkdOptions) and options.ede.enabled and options.ede.weight > 0 else None
    distillation = run.recipe.distillation
    if not (distillation.cache_teacher or (ede is not None and ede.cache)):
        return FrozenModels(teacher, ede)
    sampling = TileSampling(run.recipe.seed, run.training.epochs) if distillation.cache_scope == "seed" else None
    folder, rebuild = run.folder.path.parent / "cache", distillation.rebuild_cache
    cache_spec = make_cache_spec(run.train_data, run.recipe.data, folder, rebuild=rebuild, sampling=sampling)
    return FrozenModels(teacher, ede, cache_spec=cache_spec, cache_teacher=distillation.cache_teacher)


def _plan_run(recipe: Recipe, folder: Path, label: str, role: RoleOptions, provenance: dict[str, Any]) -> TrainingRun:
    """Read the data of a run, check what can be checked before the first step, and return the plan."""
    data, training = recipe.data, role.training
    train_data, validation_data = read_split(data, "train"), read_split(data, "validation")
    check_training(training, best_device())
    for dataset in (train_data, validation_data):
        dataset.require_images()
        if role.detector.oriented:
            dataset.require_oriented()
    if (count := len(train_data)) < (size := training.batch_size):
        raise TrainingError(f"{data.train} has fewer images than one batch", got=count, expected=f"at least {size}")
    validation_data = align_classes(
        validation_data, train_data.classes, hint="Training and validation need the same classes."
    )
    steps, warmup = training.epochs * (count // size), training.schedule.warmup_iters
    if warmup >= steps:
        logger.warning("The warm-up of %d iterations does not end: the training has %d.", warmup, steps)
    values = image_values([image.path for image in train_data.images], data.imagery)
    for remark in values.remarks:
        logger.warning("%s", remark)
    if rank() == 0:
        _warn_about_objects(train_data, validation_data)
    meta = CheckpointMeta(
        detector=role.detector,
        classes=train_data.classes,
        category_ids=train_data.category_ids,
        recipe=recipe,
        provenance={
            **provenance,
            "seed": recipe.seed,
            "train_sha256": sha256_of(train_data.path),
            IMAGE_VALUES_KEY: values.model_dump(mode="json", exclude={"remarks"}),
            "data": data.model_dump(mode="json", exclude_none=True, exclude=DATA_KEYS_WITHOUT_EFFECT),
            "training": training.model_dump(mode="json", exclude_none=True, exclude=TRAINING_KEYS_WITHOUT_EFFECT),
            "versions": {"ifkd": __version__, "torch": str(torch.__version__)},
        },
    )
    return TrainingRun(RunFolder(folder), f"{recipe.name} {label}", recipe, training, meta, train_data, validation_data)


def _warn_about_objects(train_data: CocoDataset, validation_data: CocoDataset) -> None:
    """Log splits without objects, and classes that cannot be learned."""
    counts = train_data.objects_per_class()
    absent = [name for name, count in counts.items() if not count]
    if len(absent) == len(counts):
        logger.warning("The training split, %s, has no object: there is nothing to learn", train_data.path)
    elif absent:
        hint = "If they only group other classes, `ifkd data check --fix` leaves them out."
        logger.warning("Classes without an object in %s: %s. %s", train_data.path, ", ".join(absent), hint)
    if not sum(validation_data.objects_per_class().values()):
        effect = "no mAP, so the last checkpoint is the best"
        logger.warning("The validation split, %s, has no object: %s", validation_data.path, effect)


def _warn_about_small_objects(run: TrainingRun, detector: Detector) -> None:
    """Log that the anchors are too large for most objects."""
    corners = np.concatenate([image.boxes for image in run.train_data.images])
    if len(corners) == 0:
        return
    stride, smallest = detector.strides[0], detector.strides[0] * detector.anchor_scales[0]
    side = float(np.median(np.sqrt(np.prod(corners[:, 2:] - corners[:, :2], axis=1)))) * run.recipe.data.scale
    if side < SMALL_OBJECT * smallest:
        fitting = max(1.0, round(2 * side / stride) / 2)
        logger.warning(
            "Half of the objects in %s are smaller than %.0f px after scaling, and the smallest anchor has %.0f px: "
            "detector.anchor_scale = %g, for teacher and student, would fit them better.",
            run.train_data.path, side, smallest, fitting,
        )  # fmt: skip


def _start_run(run: TrainingRun, *, resume: bool) -> tuple[TrainingRun, Detector]:
    """Delete an earlier run unless `resume`; return the untrained detector, and the run that names its weights."""
    if not resume:
        remove_run(run.folder)
    assert isinstance(run.meta, CheckpointMeta)
    detector = _build_untrained(run.recipe, run.meta.detector, len(run.meta.classes))
    if detector.load_reports:
        pretrained = [report.to_provenance() for report in detector.load_reports]
        meta = run.meta.model_copy(update={"provenance": {**run.meta.provenance, "pretrained": pretrained}})
        run = replace(run, meta=meta)
    if rank() == 0:
        _warn_about_small_objects(run, detector)
        run.folder.require_settings(run.meta)
        weights = sum(tensor.nbytes for tensor in detector.state_dict().values())
        require_writable(run.folder.best, size=COPIES_ON_DISK * weights)
    return run, detector


def _build_untrained(recipe: Recipe, options: DetectorOptions, num_classes: int) -> Detector:
    """Return a detector with the initial weights of the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build_detector(options, num_classes)


def _with_available_encoder(options: MethodOptions) -> tuple[MethodOptions, list[str]]:
    """Return the method's options with the MobileSAM weights that are available, and notes for the provenance."""
    if not isinstance(options, IfkdOptions) or not options.ede.enabled:
        return options, []
    weights = available_weights(options.ede.weights) if options.ede.fall_back_to_random else options.ede.weights
    notes = []
    if options.ede.weight > 0 and weights == "random":
        chosen = options.ede.weights == "random"
        notes = [RANDOM_ENCODER_NOTE if chosen else NO_ENCODER_NOTE]
        if rank() == 0 and not chosen:
            logger.warning("%s", notes[0])
    elif options.ede.weight > 0:
        read_mobile_sam(weights)  # fails before the teacher is validated
    ede = options.ede.model_copy(update={"weights": weights})
    return options.model_copy(update={"ede": ede}), notes


def _check_teacher_checkpoint(teacher: Checkpoint, student: CheckpointMeta) -> None:
    given, own = teacher.meta.detector, student.detector
    for difference, got, expected in (
        ("is of another family than the recipe's student", given.family, own.family),
        ("has other classes than the recipe's data", list(teacher.meta.classes), list(student.classes)),
        ("has another anchor_scale than the recipe's student", given.smallest_anchor, own.smallest_anchor),
        ("differs in `oriented` from the recipe's student", given.oriented, own.oriented),
    ):
        if got != expected:
            raise CheckpointError(f"The teacher {teacher.path} {difference}", got=got, expected=expected)
    channels, method = given.channels, student.recipe.distillation.method
    if isinstance(method, EQUAL_WIDTHS) and channels != own.channels:
        problem = f"The teacher {teacher.path} has another width than the recipe's student, and {method.name} has no"
        problem += " layer between pyramids of different widths"
        raise CheckpointError(problem, got=f"{channels} channels", expected=f"{own.channels} channels")


def _check_teacher_map(teacher: Detector, run: TrainingRun) -> None:
    min_map = run.recipe.distillation.min_teacher_map
    mean_ap = validate(teacher, run.validation_data, run.recipe).mean_ap
    if (mean_ap or 0.0) < min_map:
        shown = "n/a, as no object is labeled" if mean_ap is None else f"{mean_ap:.3f}"
        got, expected = f"validation mAP {shown}", f"at least {min_map} (distillation.min_teacher_map)"
        hint = "Train the teacher longer, or check that it was trained with the recipe's data and scale."
        raise TrainingError("The teacher is too weak for distillation", got=got, expected=expected, hint=hint)


def remove_run(folder: RunFolder) -> None:
    """Delete an earlier run on rank 0; refuse a folder of other files."""
    if rank() > 0 or not folder.path.exists():
        return
    if not folder.config.is_file() and any(folder.path.iterdir()):
        problem = f"{folder.path} contains files but no run, and --no-resume does not delete them"
        raise OutputError(problem, hint="Choose another folder.")
    shutil.rmtree(folder.path)
