"""Threads that run beside the engine, each with a bounded queue: prefetching of tiles, and background work."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from deploy.scene.read.tile_reader import TileRead
from ifkd.core.detections import Array
from ifkd.core.tiling import Window

T = TypeVar("T")
POLL_S = 0.1
"""Interval at which a thread with a full queue checks whether the other thread has stopped."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedTile:
    """A tile at the engine's resolution. A tile without pixels is empty, outside or unreadable."""

    index: int
    window: Window
    pixels: Array | None
    """uint8 [3, height, width]."""
    problem: str | None = None
    """Reason why the tile is unreadable."""
    outside: bool = False
    """Whether the tile is outside the area of interest."""


class Stopwatch:
    """Seconds by stage, of one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str, *, sign: int = 1) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + sign * (time.perf_counter() - start)

    def excluded(self, stage: str) -> AbstractContextManager[None]:
        """Subtract the duration of the block from a stage that contains it."""
        return self(stage, sign=-1)

    def waits(self, items: Iterator[T], stage: str = "wait") -> Iterator[T]:
        """Yield `items`, and add the time spent waiting for them to a stage."""
        end = object()
        while True:
            with self(stage):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # not `end`, therefore a T


class TilePrefetcher:
    """Prepared tiles, iterable once; a thread reads and prepares a bounded number of tiles ahead.

    `read` returns the tiles at the engine's resolution, given the context that it enters while it resizes. An exception
    of the thread is raised by the iteration.
    """

    def __init__(
        self, read: Callable[[Callable[[], AbstractContextManager[None]]], Iterator[TileRead]], *, depth: int
    ) -> None:
        self._read = read
        self._queue: queue.Queue[PreparedTile | BaseException | None] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="scene-reader", daemon=True)
        self.stopwatch = Stopwatch()
        """Of the stages read and preprocess; complete after the iteration has ended."""

    def __enter__(self) -> "TilePrefetcher":  # noqa: PYI034 - beartype cannot check Self
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[PreparedTile]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for read in self.stopwatch.waits(self._read(self._resizing), "read"):
                with self.stopwatch("preprocess"):
                    tile = _prepared(read)
                if not _put(self._queue, tile, self._stopped.is_set):
                    return
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            last = error
        _put(self._queue, last, self._stopped.is_set)

    @contextmanager
    def _resizing(self) -> Iterator[None]:
        """Count the block as preprocess, not as the read that contains it."""
        with self.stopwatch.excluded("read"), self.stopwatch("preprocess"):
            yield


def _prepared(read: TileRead) -> PreparedTile:
    pixels = None
    if read.patch is not None and read.patch.valid.any():
        pixels = np.ascontiguousarray(read.patch.pixels.transpose(2, 0, 1))
    outside = read.patch is None and read.problem is None
    return PreparedTile(read.index, read.window, pixels, read.problem, outside)


class BackgroundWorker(Generic[T]):
    """Processes items in order in a thread of its own. An exception of the thread is raised by `put` or at exit."""

    def __init__(self, work: Callable[[T], None], *, depth: int) -> None:
        self._work = work
        self._queue: queue.Queue[T | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scene-decoder", daemon=True)

    def put(self, item: T) -> None:
        """Enqueue an item; block while the queue is full."""
        _put(self._queue, item, lambda: self._error is not None)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "BackgroundWorker[T]":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all items are processed, and raise the thread's exception."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error, the remaining items are only removed
                try:
                    self._work(item)
                except BaseException as error:  # noqa: BLE001 - the calling thread raises it
                    self._error = error


def _put(items: "queue.Queue[T]", item: T, stopped: Callable[[], bool]) -> bool:
    """Put an item into a queue and return True; return False if the other thread stops before there is space."""
    while not stopped():
        with suppress(queue.Full):
            items.put(item, timeout=POLL_S)
            return True
    return False
