"""The arithmetic of a run: optimizer, learning rate, half precision, averaged weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ifkd import recipe
from ifkd.core.errors import TrainingError
from ifkd.distillation.methods import Method
from ifkd.models import Detector


def build_optimizer(
    training: recipe.TrainingOptions, detector: nn.Module, method: Method | None
) -> torch.optim.Optimizer:
    """Return the optimizer of a detector and of what its method learns; each group's full rate is its `base_lr`.

    The rate follows the linear rule: `learning_rate` is meant for `base_batch_size` images a step.
    """
    rate = training.optimizer.learning_rate * training.batch_size / training.optimizer.base_batch_size
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": learning, "weight_decay": training.optimizer.weight_decay}]
    if method is not None:
        groups += method.parameter_groups(training.optimizer.weight_decay)
    for group in groups:
        group["base_lr"] = rate
    if training.optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=training.optimizer.momentum)


def lr_factor(training: recipe.TrainingOptions, iteration: int, epoch_length: int) -> float:
    """Return the share of the full learning rate at an iteration: linear warm-up, then the schedule."""
    if training.schedule.name == "step":
        factor = 0.1 ** sum(iteration >= step * epoch_length for step in training.schedule.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * iteration / (training.epochs * epoch_length)))
    if iteration < training.schedule.warmup_iters:
        share = iteration / training.schedule.warmup_iters
        factor *= training.schedule.warmup_factor * (1 - share) + share
    return factor


def build_autocast(training: recipe.TrainingOptions, device: torch.device) -> torch.autocast:
    """Return the context of a training step's forward passes.

    Raises:
        TrainingError: fp16 is asked for on a CPU.
    """
    choice = training.compute.amp
    if choice == "auto":
        on_cpu = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else on_cpu()
        choice = "bf16" if native else "none"
    if choice == "fp16" and device.type == "cpu":
        raise TrainingError('training.compute.amp = "fp16" needs a GPU', hint='Use "bf16", "auto" or "none".')
    dtype = torch.float16 if choice == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=choice != "none")


def build_average(training: recipe.TrainingOptions, detector: Detector) -> AveragedModel | None:
    """Return the running mean of a detector's weights, or None when the run keeps none.

    The mean forgets with `ema_decay`, and sooner at first: step n weighs the past by (1 + n)/(10 + n) until that
    exceeds it, so that a short run is not held back by its start. Buffers are averaged as weights are.
    """
    if training.ema_decay is None:
        return None
    longest = training.ema_decay

    def averaged(mean: Tensor, value: Tensor, steps: int | Tensor) -> Tensor:
        done = int(steps)
        if not mean.is_floating_point():
            return value
        return mean.lerp(value, 1 - min(longest, (1 + done) / (10 + done)))

    return AveragedModel(detector, avg_fn=averaged, use_buffers=True)


def place(detector: Detector, training: recipe.TrainingOptions, device: torch.device) -> Detector:
    """Return a detector on its device, in the memory format and with the batch norm that its run asks for.

    Raises:
        TrainingError: Batch norm over all ranks is asked for on a CPU, where torch has none.
    """
    if training.compute.sync_batch_norm:
        if device.type == "cpu":
            raise TrainingError(
                "training.compute.sync_batch_norm needs GPUs", hint='Set it to false, or use norm = "frozen".'
            )
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # type: ignore[no-untyped-call]
    detector = detector.to(device)
    if training.compute.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if training.compute.compile:
        detector.compile()
    return detector
