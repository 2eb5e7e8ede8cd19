"""Engines on Ray, an actor for each GPU or so many CPU cores, that share the bands of all scenes.

Each actor is served by two threads of this process: while it works on one band, it reads the next. A thread takes the
first band that waits, and puts the rows into the scene's assembly, that is, into its journal, before it takes another
one; so what is in flight is bounded by the number of engines. When an actor is lost, Ray starts it again, and its bands
go back into the queue. A band that loses one engine after another is not looked at for ever: its scene fails.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deploy.cluster.batch_run import EnginePool
from deploy.cluster.bundle_copy import BundleCopy
from deploy.cluster.engine_actor import EngineActor, OpenEngine, RangeResult, ScenePlan
from deploy.cluster.range_queue import RangeQueue, SceneJob, WaitingRange
from deploy.cluster.ray_cluster import Node, connected, nodes_of, require_alike
from deploy.engines.engine import EngineInfo
from deploy.scene.read.scene import Scene
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.executor import ExecutionStats, SceneExecutor
from deploy.scene.run.row_ranges import RowRange
from deploy.scene.run.run_rows import RowPlan
from export.bundle.bundle import Bundle
from ifkd.core.errors import EngineError, SceneError, UsageError

BANDS_PER_ENGINE = 2
"""One is worked on while the next is read."""
MOST_LOSSES = 3
"""A band that has lost so many engines is given up; the last time, its engine works on nothing else."""
REVIVAL_S = 300.0
"""How long a lost engine is waited for."""
POLL_S = 0.5


@contextmanager
def ray_engines(
    bundle: Bundle, open_engine: OpenEngine, *, on_gpu: bool, cores_per_engine: int, say: Callable[[str], object]
) -> Iterator[EnginePool]:
    """Open an engine on every GPU of the cluster, or on so many of its CPU cores each.

    Args:
        bundle: The bundle; it travels to nodes that do not have it.
        open_engine: Loads its model, there.
        on_gpu: An engine needs a GPU.
        cores_per_engine: CPU cores of each.
        say: Takes lines for the user.

    Raises:
        EngineError: The cluster has no room for an engine, or one cannot start.
        MissingExtraError: Ray is not installed.
        UsageError: Versions differ between this machine and the cluster.
    """
    with connected() as ray:
        nodes = nodes_of(ray)
        count = sum(_room(node, on_gpu=on_gpu, cores=cores_per_engine) for node in nodes)
        if not count:
            raise EngineError(
                "The cluster has no room for an engine",
                got=", ".join(f"{node.name} with {node.cores} cores and {node.gpus} GPUs" for node in nodes),
                expected=f"{cores_per_engine} cores{' and a GPU' if on_gpu else ''} on one node",
                hint="Lower --cores-per-actor, or add nodes.",
            )
        have_bundle = require_alike(ray, nodes, bundle)
        copy = BundleCopy.of(bundle, travels=not have_bundle)
        # An actor that is started again asks for its arguments again, so what is large stays with this process.
        fetch = partial(_itself, copy) if have_bundle else partial(ray.get, ray.put(copy))
        kind = ray.remote(EngineActor).options(
            num_cpus=cores_per_engine,
            num_gpus=int(on_gpu),
            max_restarts=-1,
            max_concurrency=BANDS_PER_ENGINE + 1,  # and whoever asks whether it lives
        )
        say(f"Opening {_counted(count, 'engine')} on Ray ({_counted(len(nodes), 'node')}).")
        actors = [kind.remote(fetch, open_engine) for _ in range(count)]
        searcher = RayExecutor(ray, actors, _info_of(ray, actors))
        with searcher:
            yield EnginePool(
                searcher,
                {
                    "scale_out": f"ray {ray.__version__}",
                    "backend": searcher.info.backend,
                    "device": searcher.info.device,
                    "engines": count,
                    "cores_per_engine": cores_per_engine,
                    "nodes": len(nodes),
                },
                scenes_at_once=BANDS_PER_ENGINE * count + 2,
            )


class RayExecutor(SceneExecutor):
    """Shares bands out to actors. Use it in a `with`: at its end the actors and the threads that asked them are gone.

    Args:
        ray: Ray, connected; it must stay so until then, as Ray starts a cluster for a thread that asks it later.
        actors: Engine actors that are ready.
        info: What their engines are.
    """

    def __init__(self, ray: Any, actors: Sequence[Any], info: EngineInfo) -> None:
        self.info = info
        self._ray = ray
        self._queue = RangeQueue()
        self._numbers = itertools.count()
        self._actors = actors
        self._stopped = threading.Event()
        places = [_ActorPlace(ray, actor, self._stopped) for actor in actors]
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"engine-{number}", daemon=True)
            for number, place in enumerate(places)
            for _ in range(BANDS_PER_ENGINE)
        ]
        self._serving = len(self._threads)
        self._lock = threading.Lock()

    def search(
        self,
        scene: Scene,
        plan: RowPlan,
        stretches: Sequence[RowRange],
        assembly: Assembly,
        *,
        step: Callable[[int], object],
    ) -> ExecutionStats:
        """Put the rows of stretches into the assembly; see `Searcher.search`.

        Raises:
            EngineError: No engine is left.
            SceneError: A band was given up; or a part cannot be read, and the search is strict.
            UsageError: The scene is in memory only.
        """
        info, place = scene.info, scene.place
        if place is None:
            raise UsageError("A scene in memory cannot be looked at elsewhere", hint="Write it to a file.")
        place = place.absolute() if isinstance(place, Path) else place
        job = SceneJob(assembly, ScenePlan(place, info.bands, info.nodata, info.scaling, plan))
        number = next(self._numbers)
        bands = [WaitingRange((number, index), job, stretch) for index, stretch in enumerate(stretches)]
        seconds: Counter[str] = Counter()
        try:
            for band in bands:
                self._queue.put(band)
            for band in bands:
                seconds.update(band.done.result())
                step((band.stretch.stop_row - band.stretch.new_row) * plan.columns)
        finally:
            self._queue.drop(job)
            job.close()
        return ExecutionStats(dict(seconds), job.retries)

    def stop(self) -> None:
        """End all searches with an error."""
        self._stopped.set()
        self._queue.close(EngineError("The run was stopped"))

    def __enter__(self) -> "RayExecutor":  # noqa: PYI034 - beartype cannot check Self
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for actor in self._actors:
            self._ray.kill(actor)
        for thread in self._threads:
            thread.join()

    def _serve(self, actor: "_ActorPlace") -> None:
        """Hand bands to an actor, one after another, until the queue is closed or the actor is lost for good."""
        while actor.revived() and (band := self._queue.take()) is not None:
            try:
                answer = actor.look(band)
                band.job.deliver(answer)
                band.done.set_result(answer.seconds)
            except _ActorLostError as lost:
                self._give_back(band, counts=lost.while_looking)
            except BaseException as error:  # noqa: BLE001 - whoever waits for the band raises it
                band.done.set_exception(error)
        with self._lock:
            self._serving -= 1
            if not self._serving:
                self._queue.close(
                    EngineError(
                        "No engine is left",
                        hint="Look at `ray status`, then give the same command again: it goes on where it stopped.",
                    )
                )

    def _give_back(self, band: WaitingRange, *, counts: bool) -> None:
        """Put a band back into the queue, or give it up."""
        band.losses += counts
        if band.losses < MOST_LOSSES:
            if counts:
                band.job.count_retry()
            self._queue.put(band)
            return
        rows = f"rows {band.stretch.new_row} to {band.stretch.stop_row - 1} of tiles"
        band.done.set_exception(
            SceneError(
                f"{band.losses} engines were lost while they looked at {rows}",
                hint="The file may bring its decoder down, or the machines may have too little memory.",
            )
        )


class _ActorLostError(Exception):
    """An actor is lost."""

    def __init__(self, *, while_looking: bool) -> None:
        super().__init__()
        self.while_looking = while_looking


class _ActorPlace:
    """An actor, which two threads ask."""

    def __init__(self, ray: Any, actor: Any, stopped: threading.Event) -> None:
        self._ray = ray
        self._actor = actor
        self._stopped = stopped
        self._gate = threading.Lock()
        self._room = threading.Semaphore(BANDS_PER_ENGINE)
        self._lost = False

    def look(self, band: WaitingRange) -> RangeResult:
        """Return a band's answer; what the actor raises comes out.

        Raises:
            _ActorLostError: It was lost on the way, or before.
        """
        errors = self._ray.exceptions
        # What may have brought it down twice gets it for itself, so that no other band is taken for the cause.
        share = BANDS_PER_ENGINE if band.losses == MOST_LOSSES - 1 else 1
        with self._gate:
            for _ in range(share):
                self._room.acquire()
        try:
            if self._lost:
                raise _ActorLostError(while_looking=False)
            answer: RangeResult = self._ray.get(self._actor.look.remote(band.job.plan, band.stretch))
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            self._lost = True
            raise _ActorLostError(while_looking=True) from error
        finally:
            for _ in range(share):
                self._room.release()
        return answer

    def revived(self) -> bool:
        """Wait until the actor answers again, if it was lost; return whether it does. None is waited for at the end."""
        end = time.monotonic() + REVIVAL_S
        while self._lost and not self._stopped.is_set() and (left := end - time.monotonic()) > 0:
            try:
                self._ray.get(self._actor.info.remote(), timeout=left)
            except self._ray.exceptions.RayError:
                self._stopped.wait(POLL_S)
                continue
            self._lost = False
        return not self._lost


def _itself(copy: BundleCopy) -> BundleCopy:
    """Return a copy that an actor gets as it is."""
    return copy


def _room(node: Node, *, on_gpu: bool, cores: int) -> int:
    """Return how many engines a node has room for."""
    return min(node.cores // cores, node.gpus) if on_gpu else node.cores // cores


def _info_of(ray: Any, actors: Sequence[Any]) -> EngineInfo:
    """Return what the engines are, when all have started.

    Raises:
        EngineError: One cannot start, or they are not alike.
    """
    try:
        infos = ray.get([actor.info.remote() for actor in actors])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None)
        raise EngineError(f"An engine cannot start on Ray ({_last_line(cause or error)})") from error
    others = {str(info) for info in infos if info != infos[0]}
    if others:
        raise UsageError(
            "The engines of the cluster are not alike, so their answers would differ",
            got="; ".join([str(infos[0]), *sorted(others)]),
            hint="Choose nodes of one kind.",
        )
    return infos[0]


def _last_line(error: BaseException) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
