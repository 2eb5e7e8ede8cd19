"""Data-parallel training: this process among its peers. Alone, everything here is the identity.

A loss that divides by a count over the batch must divide by the count's mean over the ranks: gradients are averaged
over ranks, so that the result is that of one process with all the images. Counts are summed without gradient.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

from ifkd.core.errors import TrainingError

T = TypeVar("T")


@contextmanager
def peers() -> Iterator[None]:
    """Join the processes that torchrun started, by NCCL on GPUs and by gloo on CPUs; alone, do nothing.

    Raises:
        TrainingError: torchrun is to restart processes in a way that would leave them waiting for each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _together():
        yield
        return
    _require_fresh_store()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together; 1 when this one is alone."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return distributed.get_rank() if _together() else 0


def sum_over_ranks(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the sum of `value` over all ranks, without gradient; every rank must call it."""
    total = value.detach().clone()
    if _together():
        distributed.all_reduce(total)
    return total


def mean_over_ranks(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the mean of `value`, a float tensor, over all ranks, without gradient; every rank must call it."""
    return sum_over_ranks(value) / world_size()


def from_first(value: T) -> T:
    """Return rank 0's `value`, of any kind that can be pickled; every rank must call it."""
    if not _together():
        return value
    carried = [value]
    distributed.broadcast_object_list(carried, src=0)
    return carried[0]


def from_all(value: T) -> list[T]:
    """Return every rank's `value` in the order of ranks; every rank must call it."""
    if not _together():
        return [value]
    gathered: list[T] = [value] * world_size()
    distributed.all_gather_object(gathered, value)
    return gathered


def _require_fresh_store() -> None:
    """Refuse restarts that meet over the store of the attempt before.

    The store still holds the addresses of processes that are gone, and the new ones wait for these until a timeout
    of half an hour (github.com/pytorch/pytorch/issues/135712). Better told before the first step than found then.
    """
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise TrainingError(
            "Processes that torchrun restarts would wait for those that are gone",
            got=f"--max-restarts {restarts} with a store that all attempts share",
            hint="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and --rdzv-backend c10d.",
        )


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
