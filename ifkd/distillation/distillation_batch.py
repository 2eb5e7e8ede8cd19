"""Outputs of the student, the teacher and MobileSAM for one training step."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ifkd.models import DetectorOutput, Targets


@dataclass(frozen=True, slots=True, eq=False)
class TeacherOutputs:
    """Outputs of the frozen models for a batch, without gradient."""

    teacher: DetectorOutput
    embedding: Float[Tensor, "batch _ rows columns"] | None
    """MobileSAM's embedding (256 channels, stride 16) or mask logits (1 channel, stride 4); None if it is not used."""


@dataclass(frozen=True, slots=True, eq=False)
class DistillationBatch:
    """Input of a distillation method in one training step."""

    student: DetectorOutput
    teacher: DetectorOutput
    """Without gradient."""
    embedding: Float[Tensor, "batch _ rows columns"] | None
    """As in `TeacherOutputs`."""
    targets: list[Targets]
    iteration: int
    """Number of completed steps."""
