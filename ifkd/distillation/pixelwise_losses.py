"""Losses at each location of a map, the inner sums of eqs 12 and 13, and their weighted sum."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ifkd.models.detector import FeatureMap, LocationMap, LogitMap, Scalar


class _SquaredDistance(torch.autograd.Function):
    """Sum over channels of (target - student)²; saves only the difference for the backward pass."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, student: Tensor) -> Tensor:
        difference = target - student
        ctx.save_for_backward(difference)
        return torch.linalg.vector_norm(difference, dim=1, keepdim=True).square_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (difference,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, difference * (-2 * gradient)
        of_target = difference * (2 * gradient)
        return of_target, -of_target if ctx.needs_input_grad[1] else None


def squared_distance(target: FeatureMap, student: FeatureMap) -> LocationMap:
    """Return the sum over channels of the squared difference of float32 maps (eq. 12)."""
    distance: Tensor = _SquaredDistance.apply(target, student)
    return distance


def weighted_sum(weights: Iterable[Tensor], losses: Iterable[Tensor]) -> Scalar:
    """Return the sum over levels and locations of the losses times their weights."""
    return torch.stack([(weight * loss).sum() for weight, loss in zip(weights, losses, strict=True)]).sum()


def cross_entropy(student: LogitMap, teacher: LogitMap) -> LocationMap:
    """Return the sum over channels of the binary cross-entropy with the teacher's probabilities (eq. 13)."""
    soft = teacher.detach().float().sigmoid()
    losses = functional.binary_cross_entropy_with_logits(student.float(), soft, reduction="none")
    return losses.sum(dim=1, keepdim=True)


@torch.no_grad()
def entropy(teacher: LogitMap) -> LocationMap:
    """Return the teacher's entropy, the minimum of `cross_entropy`, without gradient."""
    return cross_entropy(teacher, teacher)
