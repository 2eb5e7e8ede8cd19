"""Queue of the row ranges and bands that wait for an engine; those of the earliest scene come first."""

import heapq
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from deploy.cluster.engine_actor import RangeResult, ScenePlan
from deploy.scene.run.row_ranges import RowRange


class SceneJob:
    """A scene in execution; `put` receives its finished rows or bands."""

    def __init__(self, put: Callable[[Any], None], plan: ScenePlan) -> None:
        self.plan, self.retries = plan, 0
        self._put, self._open = put, True
        self._lock = threading.Lock()

    def deliver(self, result: RangeResult) -> None:
        """Put the results of a row range or a band, unless the job is closed."""
        with self._lock:
            if self._open:
                for one in result.results:
                    self._put(one)

    def count_retry(self) -> None:
        """Count a row range that runs again."""
        with self._lock:
            self.retries += 1

    def close(self) -> None:
        """Ignore later results."""
        with self._lock:
            self._open = False


@dataclass(order=True, slots=True)
class WaitingRange:
    """A row range, or a band of the screen, that waits for an engine."""

    order: tuple[int, int]
    """Number of the scene, and of the row range in it."""
    job: SceneJob = field(compare=False)
    task: RowRange | int = field(compare=False)
    done: "Future[dict[str, float]]" = field(compare=False, default_factory=Future)
    """Seconds by stage; set when the results are put."""
    lost_engines: int = field(compare=False, default=0)
    """Number of engines that were lost while they ran it."""


class RangeQueue:
    """Priority queue of row ranges. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: list[WaitingRange] = []
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def put(self, waiting: WaitingRange) -> None:
        """Add a row range."""
        with self._changed:
            if self._error is not None:
                waiting.done.set_exception(self._error)
                return
            heapq.heappush(self._waiting, waiting)
            self._changed.notify()

    def take(self) -> WaitingRange | None:
        """Remove and return the first row range; block while the queue is empty; return None after `close`."""
        with self._changed:
            while not self._waiting and self._error is None:
                self._changed.wait()
            return heapq.heappop(self._waiting) if self._waiting else None

    def drop(self, job: SceneJob) -> None:
        """Remove the row ranges of a job."""
        with self._changed:
            self._waiting = [waiting for waiting in self._waiting if waiting.job is not job]
            heapq.heapify(self._waiting)

    def close(self, error: BaseException) -> None:
        """Fail all row ranges, those in the queue and later ones, with an error."""
        with self._changed:
            self._error = error
            for waiting in self._waiting:
                waiting.done.set_exception(error)
            self._waiting.clear()
            self._changed.notify_all()
