"""Training runs as a recipe states them: a role alone, or the student from the teacher."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ifkd import __version__, recipe
from ifkd.compute.device import best_device
from ifkd.compute.distributed import from_first, rank
from ifkd.core.errors import CheckpointError, OutputError, TrainingError
from ifkd.core.files import sha256_of
from ifkd.data.coco import CocoDataset
from ifkd.data.splits import read_split
from ifkd.distillation import Draws, FrozenModels, cache_spec_of, measure_feature_rms
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.fgd import inherit
from ifkd.models import Detector, FasterRcnn, build_detector, normalize
from ifkd.models.checkpoint import Checkpoint, CheckpointMeta, build_from, load_checkpoint
from ifkd.models.mobile_sam.encoder import available_weights
from ifkd.training.dataset import EpochSampler, TileDataset, collate
from ifkd.training.prediction import validate
from ifkd.training.run_folder import RESULT, RunFolder
from ifkd.training.trainer import fit

CALIBRATION_BATCHES = 8
"""Batches over which the teacher's feature scale is measured."""

PLACE_AND_PACE = {"root", "images", "cache_mb", "workers"}
"""Settings of the data that say where it lies and how fast it comes, not what is learned from it."""

PACE = {"log_every", "save_every_minutes"}
"""Settings of training that no weight depends on."""

RANDOM_ENCODER_NOTE = (
    "EDE used MobileSAM's network with seeded random weights, as the published checkpoint is not installed: "
    "its part of the method carries no knowledge of images here."
)


def train_role(
    settings: recipe.Recipe, role: Literal["teacher", "student"], folder: Path, *, restart: bool = False
) -> dict[str, Any]:
    """Train the recipe's teacher or student alone and return the run's result."""
    part = settings.teacher if role == "teacher" else settings.student
    run = _run(settings, folder, role, part.detector, part.training, {"role": role, "method": "none"})
    _clear(folder, restart=restart)
    detector = _fresh_detector(settings, part.detector, len(run.meta.classes))
    return fit(_with_origin(run, detector), detector)


def distill_student(
    settings: recipe.Recipe, teacher_path: Path, folder: Path, *, restart: bool = False
) -> dict[str, Any]:
    """Train the recipe's student from a teacher's checkpoint and return the run's result.

    The student starts from the very weights that plain training of the same seed starts from; with FGD it may
    inherit some of the teacher's.

    Raises:
        CheckpointError: The teacher is absent or finds other classes.
        TrainingError: The teacher is too weak to teach.
    """
    checkpoint = load_checkpoint(teacher_path)
    method_config, notes = _with_available_encoder(settings.distillation.method)
    student_config = settings.student.detector
    run = _run(
        settings,
        folder,
        "student",
        student_config,
        settings.distillation.training,
        {
            "role": "student",
            "method": method_config.model_dump(mode="json", exclude_none=True),
            "teacher": str(teacher_path),
            "teacher_sha256": sha256_of(teacher_path),
            **({"cached_teacher": True} if settings.distillation.cache_teacher else {}),
            "notes": notes,
        },
    )
    _check_family(checkpoint, student_config)
    _check_classes(checkpoint, run.train_data)
    _clear(folder, restart=restart)
    student = _fresh_detector(settings, student_config, len(run.meta.classes))
    run = _with_origin(run, student)
    if from_first((folder / RESULT).is_file()):
        return fit(run, student)
    teacher = build_from(checkpoint).to(best_device())
    _check_teacher(teacher, run, settings.distillation.min_teacher_map)
    between = NetworkPair(
        channels=student_config.channels,
        teacher_channels=checkpoint.meta.detector.channels,
        levels=student_config.levels,
        feature_rms=feature_rms(teacher, run.train_data, settings)
        if isinstance(method_config, recipe.IfkdOptions)
        else (),
        second_stage=teacher.classify if isinstance(teacher, FasterRcnn) else None,
        detectors=(student, teacher),
    )
    if isinstance(method_config, recipe.FgdOptions) and method_config.inherit:
        inherit(student, teacher)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        method = build_method(method_config, between)
    wants_sam = (
        isinstance(method_config, recipe.IfkdOptions) and method_config.ede.enabled and method_config.ede.weight > 0
    )
    disturbance = method_config.ede if isinstance(method_config, recipe.IfkdOptions) and wants_sam else None
    asks = not isinstance(method_config, recipe.NoMethodOptions)
    return fit(run, student, method=method, knowledge=_knowledge(teacher, disturbance, run) if asks else None)


def _knowledge(teacher: Detector, disturbance: recipe.EdeOptions | None, run: RunFolder) -> FrozenModels:
    """Return the frozen part of a run; its caches lie beside the run's folder."""
    distillation = run.settings.distillation
    if not (distillation.cache_teacher or (disturbance is not None and disturbance.cache)):
        return FrozenModels(teacher, disturbance)
    keeping = cache_spec_of(
        run.train_data,
        run.settings.data,
        run.folder.parent / "cache",
        rebuild=distillation.rebuild_cache,
        draws=Draws(run.settings.seed, run.training.epochs) if distillation.cache_scope == "seed" else None,
    )
    return FrozenModels(teacher, disturbance, keeping=keeping, keep_teacher=distillation.cache_teacher)


def _run(
    settings: recipe.Recipe,
    folder: Path,
    role: str,
    detector: recipe.DetectorOptions,
    training: recipe.TrainingOptions,
    provenance: dict[str, Any],
) -> RunFolder:
    data = settings.data
    train_data, validation_data = read_split(data, "train"), read_split(data, "validation")
    if len(train_data) < training.batch_size:
        raise TrainingError(
            f"{data.train} has fewer images than one batch",
            got=len(train_data),
            expected=f"at least {training.batch_size}",
        )
    if train_data.classes != validation_data.classes:
        raise TrainingError(
            f"{data.train} and {data.validation} have different classes",
            got=f"{list(train_data.classes)} and {list(validation_data.classes)}",
        )
    meta = CheckpointMeta(
        detector=detector,
        classes=train_data.classes,
        category_ids=train_data.category_ids,
        recipe=settings,
        provenance={
            **provenance,
            "seed": settings.seed,
            "train_sha256": sha256_of(train_data.path),
            "data": data.model_dump(mode="json", exclude_none=True, exclude=PLACE_AND_PACE),
            "training": training.model_dump(mode="json", exclude_none=True, exclude=PACE),
            "versions": {"ifkd": __version__, "torch": str(torch.__version__)},
        },
    )
    label = f"{settings.name} {role}" + (" distilled" if "teacher" in provenance else "")
    return RunFolder(folder, label, settings, training, meta, train_data, validation_data)


def _fresh_detector(settings: recipe.Recipe, config: recipe.DetectorOptions, classes: int) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build_detector(config, classes)


def _with_origin(run: RunFolder, detector: Detector) -> RunFolder:
    """Return the run with what of published weights its detector began with noted in its checkpoints."""
    if not detector.load_reports:
        return run
    pretrained = [report.to_provenance() for report in detector.load_reports]
    meta = run.meta.model_copy(update={"provenance": {**run.meta.provenance, "pretrained": pretrained}})
    return replace(run, meta=meta)


def _with_available_encoder(method: recipe.MethodOptions) -> tuple[recipe.MethodOptions, list[str]]:
    """Return the method with the encoder that will really run, and the notes a reader must see."""
    if not isinstance(method, recipe.IfkdOptions) or not method.ede.enabled:
        return method, []
    weights = available_weights(method.ede.weights) if method.ede.fall_back_to_random else method.ede.weights
    ede = method.ede.model_copy(update={"weights": weights})
    return method.model_copy(update={"ede": ede}), [RANDOM_ENCODER_NOTE] if weights == "random" else []


def _check_family(checkpoint: Checkpoint, student: recipe.DetectorOptions) -> None:
    if checkpoint.meta.detector.family != student.family:
        raise CheckpointError(
            f"The teacher {checkpoint.path} has another pyramid than the recipe's student",
            got=checkpoint.meta.detector.family,
            expected=student.family,
        )


def _check_classes(checkpoint: Checkpoint, dataset: CocoDataset) -> None:
    if checkpoint.meta.classes != dataset.classes:
        raise CheckpointError(
            f"The teacher {checkpoint.path} finds other classes than the recipe's data has",
            got=list(checkpoint.meta.classes),
            expected=list(dataset.classes),
        )


def _check_teacher(teacher: Detector, run: RunFolder, least: float) -> None:
    metrics = validate(
        teacher,
        run.validation_data,
        run.settings.data,
        run.settings.postprocess,
        per_level=run.settings.export.candidates_per_level,
    )
    if metrics.mean_ap < least:
        raise TrainingError(
            "The teacher is too weak to teach",
            got=f"validation mAP {metrics.mean_ap:.3f}",
            expected=f"at least {least} (distillation.min_teacher_map)",
            hint="Train the teacher longer, or check that its data and scale are the recipe's.",
        )


def feature_rms(teacher: Detector, train_data: CocoDataset, settings: recipe.Recipe) -> tuple[float, ...]:
    """Return the teacher's feature scale over the first batches of a distillation's training set."""
    seed, batch_size = settings.seed, settings.distillation.training.batch_size
    dataset = TileDataset(train_data, settings.data, seed=seed)
    keys = list(EpochSampler(len(train_data), batch_size, seed=seed))[:CALIBRATION_BATCHES]
    batches = [normalize(collate([dataset[key] for key in batch]).pixels.to(best_device())) for batch in keys]
    return measure_feature_rms(teacher, batches)


def _clear(folder: Path, *, restart: bool) -> None:
    """Remove an earlier run when it is to begin anew; a folder that holds no run is never removed."""
    if rank() > 0 or not restart or not folder.exists():
        return
    if not (folder / "config.toml").is_file() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} holds files but no run, so --no-resume does not clear it", hint="Choose another folder."
        )
    shutil.rmtree(folder)
