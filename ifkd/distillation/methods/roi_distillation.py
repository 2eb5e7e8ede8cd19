"""The second head of a two-stage detector in IFKD: teacher and student judge the same regions (eq. 13, on RoIs)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd.compute.distributed import mean_over_ranks
from ifkd.models import DetectorOutput, SampledRois

SecondStage = Callable[[DetectorOutput, list[Tensor]], Tensor]
"""A detector's output and regions of each image -> the class logits of those regions; background comes first."""


def roi_divergence(sampled: SampledRois, teacher: DetectorOutput, second_stage: SecondStage) -> Float[Tensor, ""]:
    """Return KL(teacher || student) of the classes of the regions the student was trained on, mean over regions.

    The student's side was computed with its own losses; only the teacher's head runs here, on the teacher's pyramid.
    """
    with torch.no_grad():
        wanted = second_stage(teacher, sampled.boxes).float().log_softmax(dim=1)
    answered = sampled.class_logits.float().log_softmax(dim=1)
    total = functional.kl_div(answered, wanted, reduction="sum", log_target=True)
    return total / mean_over_ranks(total.new_tensor(float(len(answered)))).clamp_min(1.0)
