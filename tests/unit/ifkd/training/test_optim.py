"""Learning rate schedules, compared with those of PyTorch."""

import itertools

import pytest
import torch

from ifkd.core.errors import TrainingError
from ifkd.recipe import ScheduleOptions, TrainingOptions
from ifkd.recipe.training_options import OptimizerOptions
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


@pytest.mark.parametrize("large", [1.0, 1e6])
def test_the_methods_gradient_does_not_shorten_the_detectors(large: float) -> None:
    """Both are clipped apart, each as torch.nn.utils.clip_grad_norm_ clips it alone."""
    torch.manual_seed(0)
    parts = [[torch.nn.Parameter(torch.zeros(4)) for _ in range(2)] for _ in range(2)]
    for part, factor in zip(parts, (5.0, large), strict=True):
        for parameter in part:
            parameter.grad = factor * torch.randn(4)
    alone = [[torch.nn.Parameter(torch.zeros(4)) for _ in range(2)] for _ in range(2)]
    for ours, theirs in zip(parts, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()
    optimizer = torch.optim.SGD([{"params": parts[0]}, {"params": parts[1][:1]}, {"params": parts[1][1:]}], lr=1.0)
    norms = optim.clip_gradients(optimizer, 2.0)
    for ours, theirs, norm in zip(parts, alone, norms, strict=True):
        torch.testing.assert_close(torch.nn.utils.clip_grad_norm_(theirs, 2.0), norm)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_the_recipes_betas_reach_adamw() -> None:
    options = OptimizerOptions(name="adamw", betas=(0.8, 0.98))
    optimizer = optim.build_optimizer(TrainingOptions(optimizer=options), torch.nn.Linear(2, 2), None)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.98)]
    default = optim.build_optimizer(
        TrainingOptions(optimizer=OptimizerOptions(name="adamw")), torch.nn.Linear(2, 2), None
    )
    assert default.defaults["betas"] == torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()).defaults["betas"]


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifkd.training.optim.world_size", lambda: 2)
    training = TrainingOptions(epochs=1, batch_size=6, accumulation_steps=3)
    optim.check_training(training, torch.device("cpu"))
    with pytest.raises(TrainingError, match=r"got 3 images, expected a multiple of 2 \(2 processes x 1 accumulation"):
        optim.check_training(
            training.model_copy(update={"batch_size": 3, "accumulation_steps": 1}), torch.device("cpu")
        )
