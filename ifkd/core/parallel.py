"""Map functions over worker processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def parallel_map(workers: int) -> Iterator[Map]:
    """Yield a function like `map` that uses `workers` processes and keeps the order; 1 uses the current process."""
    if workers <= 1:
        yield map
        return
    # A forked process with threads may deadlock.
    with get_context("spawn").Pool(workers) as pool:
        yield pool.imap
