"""Intermediate maps of IFKD for a batch, level by level, for figures and debugging."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.fdr import feature_richness, low_pass
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.models.detector import FeatureMap, LocationMap


@dataclass(frozen=True, slots=True, eq=False)
class Intermediates:
    """Intermediate maps of one level in float32."""

    level: recipe.Level
    teacher: FeatureMap
    """The teacher's features, scaled as in the losses."""
    low: FeatureMap
    """Low frequencies of `teacher`; the high frequencies are `teacher - low`."""
    richness: LocationMap
    """M_FRS."""
    disturbance: Float[Tensor, "batch _ height width"] | None
    """phi_EDE; None if EDE is off."""
    disturbed: FeatureMap
    """`teacher` with EDE (eq. 1)."""
    target: FeatureMap
    """T of eq. 12."""
    student: FeatureMap
    """The student's adapted features."""
    similarity: LocationMap
    """M_HSM, before normalization."""


@torch.no_grad()
def compute_intermediates(method: IfkdMethod, batch: DistillationBatch) -> list[Intermediates]:
    """Return the maps of every level, finest first; the method must be in eval mode, where FDR always applies."""
    assert not method.training, "in training FDR is applied at random"
    teacher, adapted = method.scale_teacher(batch.teacher.pyramid), method.adapters(batch.student.pyramid)
    activation = method.ede_activation(batch.embedding)
    pairs = method.feature_pairs(batch, teacher, adapted, torch.Generator().manual_seed(batch.iteration))
    masks = method.similarity_masks(*method.compared(pairs, (teacher, adapted)))
    maps = []
    for level, (name, target, student) in enumerate(zip(method.networks.levels, *pairs, strict=True)):
        logits = batch.teacher.logits[level]
        shape = (target.shape[2], target.shape[3])
        of_level = Intermediates(
            level=name,
            teacher=teacher[level],
            low=low_pass(teacher[level], method.config.fdr.r),
            richness=feature_richness(logits),
            disturbance=method.disturbance(name, shape, activation),
            disturbed=method.add_disturbance(name, teacher[level], activation),
            target=target,
            student=student,
            similarity=masks[level],
        )
        maps.append(of_level)
    return maps
