"""IFKD at work on the examples: its inner maps, from the method as a run left it."""

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
from ifkd.study.figures.trained_runs import TrainedRun
from ifkd.training.pipelines import feature_rms
from ifkd.training.prediction import as_batch
from ifkd.training.run_folder import LEARNED


@dataclass(frozen=True, slots=True, eq=False)
class ExampleIntermediates:
    """What IFKD makes of examples."""

    method: IfkdMethod
    maps: list[list[Intermediates]]
    """By example and level."""
    unlearned: str | None
    """Why the method's own layers are not those it learned; None when they are."""
    undisturbed: str | None
    """Why there is no EDE; None when there is."""
    encoder: str
    """What stands for MobileSAM, for a caption."""

    def at(self, level: recipe.Level) -> list[Intermediates]:
        """Return the maps of one level, by example."""
        return [next(one for one in levels if one.level == level) for levels in self.maps]


def example_intermediates(teacher: TrainedRun, student: TrainedRun, shown: Sequence[Example]) -> ExampleIntermediates:
    """Return what IFKD makes of examples with a teacher and the student it taught.

    Raises:
        CheckpointError: A checkpoint is damaged.
        DataError: The method must be calibrated anew, and the training images cannot be read.
    """
    method, unlearned = _method(teacher, student)
    knowledge, undisturbed = _knowledge(teacher.detector, method.config.ede)
    device = next(student.detector.parameters()).device
    method, knowledge = method.to(device), knowledge.to(device)
    found = []
    for example in shown:
        pixels = as_batch([example.padded]).to(device)
        images = normalize(pixels)
        taught = knowledge(images, pixels)
        with torch.no_grad():
            output = student.detector(images)
        found.append(compute_intermediates(method, DistillationBatch(output, taught.teacher, taught.embedding, [], 0)))
    encoder = "random weights" if method.config.ede.weights == "random" else "MobileSAM"
    return ExampleIntermediates(method, found, unlearned, undisturbed, encoder)


def _method(teacher: TrainedRun, student: TrainedRun) -> tuple[IfkdMethod, str | None]:
    """Return the method as the run left it; or unlearned, with the reason, when the run did not keep it."""
    path = student.folder / LEARNED
    if path.is_file():
        method, reason = load_method_checkpoint(path), None
    else:
        settings, detector = student.recipe, student.checkpoint.meta.detector
        between = NetworkPair(
            channels=detector.channels,
            teacher_channels=teacher.checkpoint.meta.detector.channels,
            levels=detector.levels,
            feature_rms=feature_rms(teacher.detector, read_split(settings.data, "train"), settings),
        )
        with torch.random.fork_rng(devices=[]):
            method = build_method(recipe.IfkdOptions.model_validate(student.method), between).eval()
        reason = f"{path} is absent: the run was made before runs kept what the method learned"
    assert isinstance(method, IfkdMethod)
    return method, reason


def _knowledge(teacher: Detector, ede: recipe.EdeOptions) -> tuple[FrozenModels, str | None]:
    """Return the frozen networks; without MobileSAM, and with the reason, where EDE is off or lacks its weights."""
    if not ede.enabled or ede.weight == 0:
        return FrozenModels(teacher), "the run has EDE switched off"
    try:
        return FrozenModels(teacher, ede.model_copy(update={"cache": False})), None
    except CheckpointError as error:
        return FrozenModels(teacher), str(error)
