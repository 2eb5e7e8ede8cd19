"""Work shared out to processes, its results in order."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def mapper(workers: int) -> Iterator[Mapper]:
    """Yield a `map` that keeps order and uses so many processes; one worker is this process."""
    if workers <= 1:
        yield map
        return
    # Fresh processes: a fork of a process with threads may hang.
    with get_context("spawn").Pool(workers) as pool:
        yield pool.imap
