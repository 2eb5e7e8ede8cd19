"""Learning rate schedules, compared with those of PyTorch."""

import itertools

import pytest
import torch

from ifkd.recipe import ScheduleOptions, TrainingOptions
from ifkd.training import optim


def lr_factors(training: TrainingOptions, epoch_length: int) -> list[float]:
    return [optim.lr_factor(training, i, epoch_length) for i in range(training.epochs * epoch_length)]


def test_the_step_schedule_equals_that_of_pytorch() -> None:
    training = TrainingOptions(epochs=12, schedule=ScheduleOptions(milestones=(8, 11), warmup_iters=0))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 110])
    for factor in lr_factors(training, 10):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_the_cosine_schedule_equals_that_of_pytorch() -> None:
    training = TrainingOptions(epochs=5, schedule=ScheduleOptions(name="cosine", warmup_iters=0))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for factor in lr_factors(training, 10):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_the_learning_rate_warms_up_linearly() -> None:
    training = TrainingOptions(
        epochs=20, schedule=ScheduleOptions(milestones=(18,), warmup_iters=100, warmup_factor=0.001)
    )
    found = lr_factors(training, 10)
    assert found[0] == pytest.approx(0.001)
    assert found[50] == pytest.approx(0.5005)
    assert found[100] == 1.0
    assert all(later - earlier == pytest.approx(0.00999) for earlier, later in itertools.pairwise(found[:100]))
    assert found[180] == pytest.approx(0.1)
