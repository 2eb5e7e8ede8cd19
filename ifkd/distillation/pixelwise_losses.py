"""What a student gets wrong at each location: the inner sums of eqs 12 and 13."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


class _SquaredDistance(torch.autograd.Function):
    """Sum over channels of (target - student)², with one map of the features' size kept and none besides."""

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


def squared_distance(
    target: Float[Tensor, "batch channels height width"], student: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch 1 height width"]:
    """Return the sum over channels of the squared difference of float32 maps (eq. 12)."""
    distance: Tensor = _SquaredDistance.apply(target, student)
    return distance


def cross_entropy(
    student: Float[Tensor, "batch classes height width"], teacher: Float[Tensor, "batch classes height width"]
) -> Float[Tensor, "batch 1 height width"]:
    """Return the sum over channels of the binary cross-entropy with the teacher's probabilities (eq. 13)."""
    soft = teacher.detach().float().sigmoid()
    each = functional.binary_cross_entropy_with_logits(student.float(), soft, reduction="none")
    return each.sum(dim=1, keepdim=True)


@torch.no_grad()
def entropy(teacher: Float[Tensor, "batch classes height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Return the teacher's own entropy, the least value of `cross_entropy`, without gradient."""
    return cross_entropy(teacher, teacher)
