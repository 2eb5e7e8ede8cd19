"""Distillation of the second stage of two-stage detectors in IFKD: class logits of the same RoIs (eq. 13 on RoIs)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ifkd.compute.distributed import mean_over_ranks
from ifkd.models import DetectorOutput, SampledRois
from ifkd.models.shapes import Scalar

SecondStage = Callable[[DetectorOutput, list[Tensor]], Tensor]
"""A detector's output and each image's RoIs -> the RoIs' class logits; background comes first."""


def roi_divergence(sampled: SampledRois, teacher: DetectorOutput, second_stage: SecondStage) -> Scalar:
    """Return KL(teacher || student) of the classes of the student's sampled RoIs, mean over RoIs.

    The student's logits were computed with its task losses; the teacher's head runs here on the teacher's pyramid.
    """
    with torch.no_grad():
        teacher_log = second_stage(teacher, sampled.boxes).float().log_softmax(dim=1)
    student_log = sampled.class_logits.float().log_softmax(dim=1)
    total = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total / mean_over_ranks(total.new_tensor(float(len(student_log)))).clamp_min(1.0)
