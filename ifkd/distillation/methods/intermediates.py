"""What IFKD makes of a batch on the way to its losses, level by level: for figures, and for whoever doubts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.fdr import feature_richness, low_pass
from ifkd.distillation.methods.ifkd import IfkdMethod


@dataclass(frozen=True, slots=True, eq=False)
class Intermediates:
    """One level of a batch as IFKD sees it, in float32."""

    level: recipe.Level
    teacher: Float[Tensor, "batch channels height width"]
    """Its features, at the scale of the losses."""
    low: Float[Tensor, "batch channels height width"]
    """Their low frequencies; the rest is `teacher - low`."""
    richness: Float[Tensor, "batch 1 height width"]
    """M_FRS."""
    disturbance: Float[Tensor, "batch _ height width"] | None
    """phi_EDE; None where EDE is off."""
    disturbed: Float[Tensor, "batch channels height width"]
    """`teacher` with EDE, as eq. 1 has it."""
    target: Float[Tensor, "batch channels height width"]
    """T of eq. 12."""
    student: Float[Tensor, "batch channels height width"]
    """Its features, adapted."""
    similarity: Float[Tensor, "batch 1 height width"]
    """M_HSM, before it is normalized."""


@torch.no_grad()
def compute_intermediates(method: IfkdMethod, views: DistillationBatch) -> list[Intermediates]:
    """Return the maps of every level, finest first; the method must be in eval mode, where FDR always applies."""
    assert not method.training, "in training FDR is applied at random"
    teacher, adapted = method.scaled(views.teacher.pyramid), method.adapters(views.student.pyramid)
    masks, active = method.masks(teacher, adapted), method.active(views.embedding)
    generator = torch.Generator().manual_seed(views.iteration)
    found = []
    for level, name in enumerate(method.levels):
        logits = views.teacher.logits[level]
        target, student = method.reconstructed(name, teacher[level], adapted[level], logits, active, generator)
        shape = (target.shape[2], target.shape[3])
        found.append(
            Intermediates(
                level=name,
                teacher=teacher[level],
                low=low_pass(teacher[level], method.config.fdr.r),
                richness=feature_richness(logits),
                disturbance=method.share(name, shape, active),
                disturbed=method.disturbed(name, teacher[level], active),
                target=target,
                student=student,
                similarity=masks[level],
            )
        )
    return found
