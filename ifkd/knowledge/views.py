"""One training step as the student, the teacher and MobileSAM see it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ifkd.detectors import DetectorOutput, Targets


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What the frozen networks say of a batch, without gradient."""

    teacher: DetectorOutput
    embedding: Float[Tensor, "batch 256 rows columns"] | None
    """MobileSAM's; None when the method does not ask for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """One training step, as a method sees it."""

    student: DetectorOutput
    teacher: DetectorOutput
    """Without gradient."""
    embedding: Float[Tensor, "batch 256 rows columns"] | None
    """MobileSAM's, without gradient; None when the method does not ask for it."""
    targets: list[Targets]
    iteration: int
    """Steps done before this one."""
