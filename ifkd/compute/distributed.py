"""Collectives of data-parallel training. In a single process they return their input.

Gradients are averaged over ranks. A loss that is divided by a count over the batch must therefore be divided by the
mean of the count over the ranks: the result is then that of one process with all images. So the smallest divisor is
not 1 but 1 / `world_size()`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed, nn

from ifkd.core.errors import TrainingError

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, with NCCL on GPUs and gloo on CPUs; do nothing in a single process.

    Raises:
        TrainingError: torchrun is set to restart processes in a way that makes them wait for each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_distributed():
        yield
        return
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The store of the previous attempt has the addresses of processes that have ended; new ones wait for them
        # until a timeout of half an hour (github.com/pytorch/pytorch/issues/135712).
        got = f"--max-restarts {restarts} with a store that is shared by all attempts"
        hint = "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and --rdzv-backend c10d."
        problem = "Processes restarted by torchrun would wait for processes that have ended"
        raise TrainingError(problem, got=got, hint=hint)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return distributed.get_rank() if _is_distributed() else 0


def mean_over_ranks(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the mean of `value`, a float tensor, over all ranks, without gradient; every rank must call it."""
    total = value.detach().clone()
    if _is_distributed():
        distributed.all_reduce(total)
    return total / world_size()


def shared_mean(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the mean of `value`, a float tensor, over all ranks, with gradient; every rank must call it."""
    return _Sum.apply(value) / world_size() if _is_distributed() else value


class _Sum(torch.autograd.Function):
    """The sum over all ranks; each rank's value has the sum of all ranks' gradients."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def broadcast_from_first(value: T) -> T:
    """Return rank 0's `value`, any object that can be pickled; every rank must call it."""
    objects = [value]
    if _is_distributed():
        distributed.broadcast_object_list(objects, src=0)
    return objects[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Set a module's buffers, such as statistics of batch norm, to those of rank 0; every rank must call it."""
    if _is_distributed():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def gather_from_all(value: T) -> list[T]:
    """Return every rank's `value` in the order of ranks; every rank must call it."""
    gathered = [value] * world_size()
    if _is_distributed():
        distributed.all_gather_object(gathered, value)
    return gathered


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
