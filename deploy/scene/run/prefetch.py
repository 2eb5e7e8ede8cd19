"""The stages of detection that run beside the engine, each in a thread of its own behind a bounded queue."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np

from deploy.scene.read.tile_reader import TileRead
from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.imagery.image_files import resize

T = TypeVar("T")
POLL_S = 0.1
"""How often a thread that waits for room looks whether the other one has stopped."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadyTile:
    """A tile that is ready for the engine; without pixels it is empty, outside, or a hole."""

    index: int
    window: Window
    pixels: Array | None
    """uint8 [3, height, width]."""
    problem: str | None = None
    """Why it could not be read."""
    outside: bool = False
    """It lies outside the area of interest."""


class Stopwatch:
    """Seconds by stage, of one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the seconds of a block under a stage's name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @contextmanager
    def outside(self, stage: str) -> Iterator[None]:
        """Take the seconds of a block from a stage within which it runs."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) - (time.perf_counter() - start)

    @contextmanager
    def entering(self, what: AbstractContextManager[Any], stage: str) -> Iterator[None]:
        """Enter what a block needs, and count the time until it is had."""
        with ExitStack() as held:
            with self(stage):
                held.enter_context(what)
            yield

    def waits(self, items: Iterator[T], stage: str = "wait") -> Iterator[T]:
        """Yield `items` and count the time spent on waiting for them."""
        end = object()
        while True:
            with self(stage):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # it is not the end, so it is a T


class ReadAhead:
    """Tiles made ready by a thread of its own, a bounded number ahead; its errors come out of the iteration."""

    def __init__(self, reads: Iterator[TileRead], tile_px: tuple[int, int], *, depth: int) -> None:
        self._queue: queue.Queue[ReadyTile | BaseException | None] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._watch = Stopwatch()
        self._tiles = self._ready(reads, tile_px)
        self._thread = threading.Thread(target=self._work, name="scene-reader", daemon=True)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent on reading and on preparing; complete when the iteration has ended."""
        return self._watch.seconds

    def __enter__(self) -> "ReadAhead":  # noqa: PYI034 - beartype cannot check Self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[ReadyTile]:
        return self

    def __next__(self) -> ReadyTile:
        item = self._queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        try:
            for tile in self._tiles:
                if not self._put(tile):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - the calling thread raises it
            self._put(error)

    def _put(self, item: "ReadyTile | BaseException | None") -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def _ready(self, reads: Iterator[TileRead], tile_px: tuple[int, int]) -> Iterator[ReadyTile]:
        for read in self._watch.waits(reads, "read"):
            with self._watch("preprocess"):
                pixels = None
                if read.patch is not None and read.patch.valid.any():
                    scaled = resize(np.ascontiguousarray(read.patch.pixels), tile_px)
                    pixels = np.ascontiguousarray(scaled.transpose(2, 0, 1))
                outside = read.patch is None and read.problem is None
                tile = ReadyTile(read.index, read.window, pixels, read.problem, outside)
            yield tile


class Background(Generic[T]):
    """Work done in order by a thread of its own, a bounded number of items behind; its errors come out of `put`.

    Args:
        work: What is done with each item.
        depth: Items that may wait.
    """

    def __init__(self, work: Callable[[T], None], *, depth: int) -> None:
        self._work = work
        self._queue: queue.Queue[T | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scene-finisher", daemon=True)

    def put(self, item: T) -> None:
        """Hand an item over; waits for room."""
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def __enter__(self) -> "Background[T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything handed over is done, and raise what went wrong in it."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if self._error is None:  # after an error, what still waits is only taken away
                try:
                    self._work(item)
                except BaseException as error:  # noqa: BLE001 - the calling thread raises it
                    self._error = error
