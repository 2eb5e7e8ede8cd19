"""Compute IFKD's intermediate maps of example images with the layers that a run learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ifkd import recipe
from ifkd.core.errors import CheckpointError
from ifkd.data.splits import read_split
from ifkd.distillation import DistillationBatch, FrozenModels
from ifkd.distillation.method_checkpoint import load_method_checkpoint
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.distillation.methods.intermediates import Intermediates, compute_intermediates
from ifkd.models import Detector, normalize
from ifkd.study.figures.examples import Example
from ifkd.study.figures.trained_runs import FinishedRun
from ifkd.training.pipelines import feature_rms
from ifkd.training.prediction import as_batch


@dataclass(frozen=True, slots=True, eq=False)
class ExampleIntermediates:
    """IFKD's intermediate maps of examples."""

    method: IfkdMethod
    maps: list[list[Intermediates]]
    """By example and level."""
    no_ede: str | None
    """Reason why there are no EDE maps; None where there are."""
    encoder: str
    """Name of EDE's image encoder."""

    def at_level(self, level: recipe.Level) -> list[Intermediates]:
        """Return the maps of one level, by example."""
        return [next(one for one in levels if one.level == level) for levels in self.maps]


def example_intermediates(
    teacher: FinishedRun, student: FinishedRun, examples: Sequence[Example]
) -> ExampleIntermediates:
    """Return the intermediate maps of examples for a teacher and a student distilled from it.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        DataError: The method has no learned layers, and the training images for its calibration cannot be read.
    """
    method = _load_method(teacher, student)
    frozen_models, no_ede = _build_frozen_models(teacher.detector, method.config.ede)
    device = next(student.detector.parameters()).device
    method, frozen_models = method.to(device), frozen_models.to(device)
    maps = []
    for example in examples:
        pixels = as_batch([example.padded]).to(device)
        images = normalize(pixels)
        outputs = frozen_models(images, pixels)
        with torch.no_grad():
            student_output = student.detector(images)
        batch = DistillationBatch(student_output, outputs.teacher, outputs.embedding, [], 0)
        maps.append(compute_intermediates(method, batch))
    encoder = "random weights" if method.config.ede.weights == "random" else "MobileSAM"
    return ExampleIntermediates(method, maps, no_ede, encoder)


def _load_method(teacher: FinishedRun, student: FinishedRun) -> IfkdMethod:
    """Return the method with the run's learned layers; a method without layers has no file, and is built again."""
    path = student.folder.method
    if path.is_file():
        method = load_method_checkpoint(path)
    else:
        settings, detector = student.recipe, student.checkpoint.meta.detector
        teacher_channels = teacher.checkpoint.meta.detector.channels
        rms = feature_rms(teacher.detector, read_split(settings.data, "train"), settings)
        networks = NetworkPair(detector.channels, teacher_channels, levels=detector.levels, feature_rms=rms)
        with torch.random.fork_rng(devices=[]):
            method = build_method(recipe.IfkdOptions.model_validate(student.method), networks).eval()
        if method.state_dict():
            raise CheckpointError(f"There is no method checkpoint {path}")
    assert isinstance(method, IfkdMethod)
    return method


def _build_frozen_models(teacher: Detector, ede: recipe.EdeOptions) -> tuple[FrozenModels, str | None]:
    """Return the frozen networks; without MobileSAM, and with the reason, where EDE is off or has no weights."""
    if not ede.enabled or ede.weight == 0:
        return FrozenModels(teacher), "EDE is off in the run"
    try:
        return FrozenModels(teacher, ede.model_copy(update={"cache": False})), None
    except CheckpointError as error:
        return FrozenModels(teacher), str(error)
