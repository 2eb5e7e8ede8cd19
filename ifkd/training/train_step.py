"""One training step as a module: from a batch to named, weighted loss terms."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifkd.distillation import DistillationBatch, TeacherOutputs
from ifkd.distillation.methods import Method, Term
from ifkd.models import Detector, Targets


class TrainStep(nn.Module):
    """Everything that learns, behind one forward, which is what data-parallel training wraps."""

    def __init__(self, detector: Detector, method: Method | None, autocast: torch.autocast) -> None:
        super().__init__()
        self.detector = detector
        self.method = method
        self._autocast = autocast

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        targets: list[Targets],
        taught: TeacherOutputs | None,
        iteration: int,
    ) -> dict[str, Term]:
        """Return the terms of a batch: `task/…` of the detector and, with `taught`, `method/…` of the method."""
        with self._autocast:
            output = self.detector(images)
            losses = self.detector.task_losses(output, targets)
        terms = {f"task/{name}": Term(value, 1.0) for name, value in losses.items()}
        if self.method is not None and taught is not None:
            with self._autocast:
                found = self.method.losses(
                    DistillationBatch(output, taught.teacher, taught.embedding, targets, iteration)
                )
            terms |= {f"method/{name}": term for name, term in found.items()}
        return terms
