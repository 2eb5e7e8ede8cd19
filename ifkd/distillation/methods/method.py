"""The interface of distillation methods: a batch in, named and weighted loss terms out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.core.config import Schema
from ifkd.distillation import DistillationBatch
from ifkd.models.detector import Detector, DetectorOutput, Scalar, SecondStage


@dataclass(frozen=True, slots=True)
class NetworkPair:
    """Properties of the student and the teacher that a method depends on."""

    channels: int
    """Of the student's pyramid."""
    teacher_channels: int
    levels: tuple[recipe.Level, ...]
    """Names of both pyramids' levels, finest first."""
    feature_rms: tuple[float, ...]
    """Root mean square of the teacher's features on the training set, by level."""
    second_stage: SecondStage | None = None
    """Classifier of given RoIs in a two-stage teacher."""
    detectors: tuple[Detector, Detector] | None = None
    """Student and teacher, for methods that use anchors or heads."""

    @property
    def family(self) -> recipe.Family:
        """Family of both detectors."""
        return next(family for family, levels in recipe.LEVELS.items() if levels == self.levels)

    def image_size(self, output: DetectorOutput) -> tuple[int, int]:
        """Return the (height, width) of an output's images."""
        return output.image_size(2 ** int(self.levels[0][1:]))

    def count_positives(self, batch: DistillationBatch) -> Scalar:
        """Return the number of positive anchors of all ranks, at least 1, over the number of ranks; needs detectors."""
        assert self.detectors is not None
        student, _ = self.detectors
        anchors = torch.cat(student.anchors(batch.student))
        positives = [(student.assign_anchors(anchors, target) >= 0).sum() for target in batch.targets]
        return mean_over_ranks(torch.stack(positives).sum().float()).clamp_min(1 / world_size())

    def weights(self, defaults: Mapping[recipe.Family, dict[str, float]], config: Schema) -> dict[str, float]:
        """Return the default weights of the detectors' family, replaced by those that `config` sets."""
        return defaults[self.family] | config.model_dump(include=set(defaults[self.family]), exclude_none=True)

    def level_indices(self, choice: recipe.LevelChoice) -> list[int]:
        """Return the indices of the chosen levels."""
        return [self.levels.index(level) for level in recipe.select_levels(choice, self.levels)]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One loss term; weight x value is added to the total loss."""

    value: Tensor
    """Scalar."""
    weight: float
    minimum: Tensor | None = None
    """Smallest possible `value`, a scalar without gradient; None is 0."""
    warmup: float = 1.0
    """Factor of a warm-up in `weight`, 0 to 1."""

    @property
    def reducible(self) -> Tensor:
        """The part of `value` that a student can reduce."""
        return self.value if self.minimum is None else self.value - self.minimum


def feature_scales(networks: NetworkPair, config: Any) -> list[float]:
    """Return the factor of each level's features: `reference_rms` over the teacher's root mean square, or 1."""
    if config.feature_scale == "none":
        return [1.0] * len(networks.levels)
    return [config.reference_rms / max(rms, 1e-12) for rms in networks.feature_rms]


def make_term(value: Tensor, weight: float, *, warmup: float = 1.0, minimum: Tensor | None = None) -> Term:
    """Return a term with weight `warmup * weight`.

    A value of weight 0 is detached: even a gradient of zeros can change the order of summation of others.
    """
    return Term(value, warmup * weight, minimum, warmup) if weight > 0 else Term(value.detach(), 0.0, minimum)


def warmup_factor(iteration: int, warmup_iters: int) -> float:
    """Return the factor of a term's weight, which rises linearly from 0 to 1."""
    return 1.0 if warmup_iters == 0 else min(1.0, iteration / warmup_iters)


def _has_zero(options: dict[str, Any]) -> bool:
    """Return whether a float of nested options is 0."""
    values = options.values()
    return any(_has_zero(one) if isinstance(one, dict) else isinstance(one, float) and one == 0 for one in values)


class Method(nn.Module, ABC):
    """A distillation method. Its own parameters are trained with the student, and are not part of its checkpoint."""

    balanced_by_term: ClassVar[bool] = False
    """With `distillation.balance`: each term has its own multiple of the task's gradient, or all together have one."""
    config: Any
    """The method's options."""
    networks: NetworkPair

    def __init__(self, config: Any, networks: NetworkPair) -> None:
        super().__init__()
        self.config = config
        self.networks = networks

    @property
    def can_have_unused_layers(self) -> bool:
        """Whether a number of the options is 0: a term of weight 0 leaves its layers without gradient."""
        return _has_zero(self.config.model_dump())

    @abstractmethod
    def losses(self, batch: DistillationBatch) -> dict[str, Term]:
        """Return the loss terms of a batch, which are added to the student's task losses."""

    def scaled(self, batch: DistillationBatch) -> DistillationBatch:
        """Return the batch with the features of both networks multiplied by the factors of `feature_scales`."""
        if self.config.feature_scale == "none":
            return batch
        scales = feature_scales(self.networks, self.config)
        student, teacher = (
            replace(one, pyramid=tuple(maps * scale for maps, scale in zip(one.pyramid, scales, strict=True)))
            for one in (batch.student, batch.teacher)
        )
        return replace(batch, student=student, teacher=teacher)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the optimizer's parameter groups of the method's own parameters."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trainable, "weight_decay": weight_decay}] if trainable else []


class Adapters(nn.ModuleList):
    """Convolutions from the student's channels to the teacher's: one for each level, or one shared by all."""

    def __init__(self, networks: NetworkPair, *, kernel: int, shared: bool = False, bias: bool = True) -> None:
        super().__init__(
            nn.Conv2d(networks.channels, networks.teacher_channels, kernel, padding=kernel // 2, bias=bias)
            for _ in range(1 if shared else len(networks.levels))
        )

    def forward(self, pyramid: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the adapted levels of the student's pyramid in float32."""
        return [self[level % len(self)](features).float() for level, features in enumerate(pyramid)]


def width_adapters(networks: NetworkPair, count: int) -> nn.ModuleList:
    """Return `count` 1x1 convolutions to the teacher's width, or identities if both widths are equal."""
    student, teacher = networks.channels, networks.teacher_channels
    return nn.ModuleList(nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1) for _ in range(count))


def in_float(pyramid: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the levels of a pyramid in float32."""
    return [features.float() for features in pyramid]


class NoDistillation(Method):
    """Training with the task losses alone."""

    def losses(self, batch: DistillationBatch) -> dict[str, Term]:  # noqa: ARG002
        """Return no terms."""
        return {}
