"""What every method is: given one batch's views, it answers with named, weighted loss terms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.roi_distillation import SecondStage
from ifkd.models import Detector


@dataclass(frozen=True, slots=True)
class NetworkPair:
    """The networks a method stands between, as far as it must know them."""

    channels: int
    """Width of the student's pyramid."""
    teacher_channels: int
    """Width of the teacher's pyramid."""
    levels: tuple[recipe.Level, ...]
    """Names of both pyramids' levels, finest first."""
    feature_rms: tuple[float, ...]
    """Root mean square of the teacher's features on the training set, by level."""
    second_stage: SecondStage | None = None
    """The teacher's judgment of given regions, when it is a two-stage detector."""
    detectors: tuple[Detector, Detector] | None = None
    """The student and the teacher themselves, for methods that look at anchors or into heads."""

    @property
    def family(self) -> recipe.Family:
        """The detectors' family, which their pyramid tells."""
        return next(family for family, levels in recipe.LEVELS.items() if levels == self.levels)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One loss term: the total gets weight x value."""

    value: Tensor
    """Scalar."""
    weight: float


def weighted(value: Tensor, weight: float, *, warm: float = 1.0) -> Term:
    """Return a term of a recipe's weight, of which `warm` counts as yet.

    A weight of 0 must not reach the student even as a sum of zeros, which can change the order of others.
    """
    return Term(value, warm * weight) if weight > 0 else Term(value.detach(), 0.0)


def warmup_factor(iteration: int, warmup_iters: int) -> float:
    """Return the share of a term that counts after some steps: it rises linearly from 0."""
    return 1.0 if warmup_iters == 0 else min(1.0, iteration / warmup_iters)


class Method(nn.Module, ABC):
    """A distillation method. Its own parameters learn with the student and never reach the exported one."""

    config: Any
    """Its options."""
    between: NetworkPair
    """The networks it was built for; `build_method` says it."""

    @abstractmethod
    def losses(self, views: DistillationBatch) -> dict[str, Term]:
        """Return the loss terms of a batch, to be added to the student's task losses."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return the optimizer's groups of the method's own parameters."""
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": learning, "weight_decay": weight_decay}] if learning else []
