"""The bands that wait for an engine: those of the earliest scene first."""

import heapq
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from deploy.cluster.engine_actor import RangeResult
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.row_ranges import RowRange


class SceneJob:
    """A scene that is being searched: where the rows of its bands go.

    Args:
        assembly: Where rows go.
        plan: What an engine is told of the scene.
    """

    def __init__(self, assembly: Assembly, plan: object) -> None:
        self.plan = plan
        self.retries = 0
        self._assembly = assembly
        self._lock = threading.Lock()
        self._open = True

    def deliver(self, answer: RangeResult) -> None:
        """Put the rows of a band into the assembly, if the scene still wants them."""
        with self._lock:
            if self._open:
                for record in answer.rows:
                    self._assembly.put(record)

    def count_retry(self) -> None:
        """Count a band that is looked at again."""
        with self._lock:
            self.retries += 1

    def close(self) -> None:
        """Take no more rows."""
        with self._lock:
            self._open = False


@dataclass(order=True, slots=True)
class WaitingRange:
    """A stretch of a scene, and who waits for it."""

    place: tuple[int, int]
    """Number of the scene, and of the band in it."""
    job: SceneJob = field(compare=False)
    stretch: RowRange = field(compare=False)
    done: "Future[dict[str, float]]" = field(compare=False, default_factory=Future)
    """The seconds by stage, when its rows are in the assembly."""
    losses: int = field(compare=False, default=0)
    """Engines that were lost while they looked at it."""


class RangeQueue:
    """Bands in order; any thread may put and take."""

    def __init__(self) -> None:
        self._bands: list[WaitingRange] = []
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def put(self, band: WaitingRange) -> None:
        """Let a band wait."""
        with self._changed:
            if self._error is not None:
                band.done.set_exception(self._error)
                return
            heapq.heappush(self._bands, band)
            self._changed.notify()

    def take(self) -> WaitingRange | None:
        """Return the first band, when there is one; None when the queue was closed."""
        with self._changed:
            while not self._bands and self._error is None:
                self._changed.wait()
            return heapq.heappop(self._bands) if self._bands else None

    def drop(self, job: SceneJob) -> None:
        """Forget the bands of a scene."""
        with self._changed:
            self._bands = [band for band in self._bands if band.job is not job]
            heapq.heapify(self._bands)

    def close(self, error: BaseException) -> None:
        """Let whoever waits for a band get an error, now and from now on."""
        with self._changed:
            self._error = error
            for band in self._bands:
                band.done.set_exception(error)
            self._bands.clear()
            self._changed.notify_all()
