"""Optimizer, learning rate schedule, mixed precision and averaged weights of a training run."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ifkd.compute.distributed import world_size
from ifkd.core.errors import TrainingError
from ifkd.distillation.methods import Method
from ifkd.models import TaskNetwork
from ifkd.recipe import TrainingOptions


def scaled_lr(training: TrainingOptions) -> float:
    """Return the learning rate scaled linearly from `base_batch_size` to the batch size."""
    return training.optimizer.learning_rate * training.batch_size / training.optimizer.base_batch_size


def build_optimizer(training: TrainingOptions, detector: nn.Module, method: Method | None) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters of a detector and of its method; each group has its full `base_lr`."""
    lr, weight_decay = scaled_lr(training), training.optimizer.weight_decay
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trainable, "weight_decay": weight_decay}]
    groups += method.parameter_groups(weight_decay) if method is not None else []
    groups = [{**group, "base_lr": lr} for group in groups]
    if training.optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=training.optimizer.betas, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=training.optimizer.momentum)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None) -> list[Tensor]:
    """Clip the gradients of the detector and of its method apart, and return both norms, before they are clipped.

    The method's layers can have much larger gradients, which then do not shorten the detector's.
    """
    norms = []
    for groups in (optimizer.param_groups[:1], optimizer.param_groups[1:]):
        parameters = [one for group in groups for one in group["params"] if one.grad is not None]
        norms.append(nn.utils.get_total_norm([one.grad for one in parameters]))
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norms[-1])
    return norms


def lr_factor(training: TrainingOptions, iteration: int, epoch_length: int) -> float:
    """Return the factor of the full learning rate at an iteration: linear warm-up times the schedule."""
    schedule = training.schedule
    if schedule.name == "step":
        factor = 0.1 ** sum(iteration >= milestone * epoch_length for milestone in schedule.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * iteration / (training.epochs * epoch_length)))
    if iteration < schedule.warmup_iters:
        progress = iteration / schedule.warmup_iters
        factor *= schedule.warmup_factor * (1 - progress) + progress
    return factor


def check_training(training: TrainingOptions, device: torch.device) -> None:
    """Refuse options that a device or the number of processes does not support.

    Raises:
        TrainingError: fp16 or synchronized batch norm is set on a CPU, or the batch cannot be split evenly.
    """
    compute, on_cpu = training.compute, device.type == "cpu"
    if compute.amp == "fp16" and on_cpu:
        raise TrainingError('training.compute.amp = "fp16" needs a GPU', hint='Use "bf16", "auto" or "none".')
    if compute.sync_batch_norm and on_cpu:  # where PyTorch does not have it
        hint = 'Set it to false, or use norm = "frozen".'
        raise TrainingError("training.compute.sync_batch_norm needs GPUs", hint=hint)
    ranks, steps = world_size(), training.accumulation_steps
    if training.batch_size % (ranks * steps):
        expected = f"a multiple of {ranks * steps} ({ranks} processes x {steps} accumulation steps)"
        got = f"{training.batch_size} images"
        raise TrainingError("training.batch_size cannot be split evenly", got=got, expected=expected)


def build_autocast(training: TrainingOptions, device: torch.device) -> torch.autocast:
    """Return the autocast context of a training step's forward passes."""
    amp = training.compute.amp
    if amp == "auto":
        on_cpu = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else on_cpu()
        amp = "bf16" if native else "none"
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=amp != "none")


def build_ema(training: TrainingOptions, detector: TaskNetwork) -> AveragedModel | None:
    """Return the exponential moving average of a detector's weights and buffers; None without `ema_decay`.

    The decay of step n is min(ema_decay, (1 + n) / (10 + n)), so that the initial weights lose influence quickly.
    """
    if (max_decay := training.ema_decay) is None:
        return None

    def update(mean: Tensor, value: Tensor, steps: int | Tensor) -> Tensor:
        step = int(steps)
        return mean.lerp(value, 1 - min(max_decay, (1 + step) / (10 + step))) if mean.is_floating_point() else value

    return AveragedModel(detector, avg_fn=update, use_buffers=True)


def prepare_detector(detector: TaskNetwork, training: TrainingOptions, device: torch.device) -> TaskNetwork:
    """Return a detector on its device with the options of `training.compute` applied."""
    compute = training.compute
    if compute.sync_batch_norm:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # type: ignore[no-untyped-call]
    detector = detector.to(device)
    if compute.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    if compute.compile:
        detector.compile()
    return detector
