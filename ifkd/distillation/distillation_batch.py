"""One training step as the student, the teacher and MobileSAM see it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ifkd.models import DetectorOutput, Targets


@dataclass(frozen=True, slots=True, eq=False)
class TeacherOutputs:
    """What the frozen networks say of a batch, without gradient."""

    teacher: DetectorOutput
    embedding: Float[Tensor, "batch _ rows columns"] | None
    """MobileSAM's: 256 channels of stride 16, or the logits of its mask, one channel of stride 4; None when the
    method does not ask for it."""


@dataclass(frozen=True, slots=True, eq=False)
class DistillationBatch:
    """One training step, as a method sees it."""

    student: DetectorOutput
    teacher: DetectorOutput
    """Without gradient."""
    embedding: Float[Tensor, "batch _ rows columns"] | None
    """MobileSAM's, as in `TeacherOutputs`, without gradient."""
    targets: list[Targets]
    iteration: int
    """Steps done before this one."""
