"""Data-parallel training: this process among its peers. Alone, everything here is the identity.

A loss that divides by a count over the batch must divide by the count's mean over the ranks: gradients are averaged
over ranks, so that the result is that of one process with all the images. Counts are summed without gradient.
"""

from jaxtyping import Shaped
from torch import Tensor, distributed


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


def barrier() -> None:
    """Wait until every rank is here."""
    if _together():
        distributed.barrier()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
