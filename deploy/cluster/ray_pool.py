"""Engine pool on Ray: one actor per GPU, or per number of CPU cores, for the row ranges of all scenes.

Two threads of this process serve each actor: while it works on one row range, it reads the tiles of the next. A thread
takes the first waiting row range, and puts its rows into the scene's assembly, and so into its journal, before it takes
another. The number of row ranges in flight is therefore bounded. If an actor is lost, Ray restarts it, and its row
ranges return to the queue. A row range that repeatedly loses its engine is not retried forever: its scene fails.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deploy.cluster.bundle_copy import BundleCopy
from deploy.cluster.engine_actor import EngineActor, OpenEngine, OpenScreen, RangeResult, ScenePlan
from deploy.cluster.engine_pool import EnginePool
from deploy.cluster.range_queue import RangeQueue, SceneJob, WaitingRange
from deploy.cluster.ray_cluster import check_nodes, connected, nodes_of
from deploy.cluster.summary import EnginesRecord
from deploy.engines.engine import EngineInfo
from deploy.scene.read.scene import Scene
from deploy.scene.run.assembly import Assembly
from deploy.scene.run.executor import ExecutionStats, SceneExecutor
from deploy.scene.run.row_ranges import RowRange
from deploy.scene.run.run_rows import RowPlan
from deploy.scene.screen.screen_layout import BandScores, ScreenLayout
from deploy.scene.screen.screen_network import ScreenNetwork
from export.bundle.bundle import Bundle
from ifkd.core.errors import EngineError, SceneError, UsageError

RANGES_PER_ENGINE = 2
"""One is processed while the next is read."""
MAX_LOST_ENGINES = 3
"""A row range that has lost this many engines fails; in its last attempt, it has its engine to itself."""
RESTART_TIMEOUT_S = 300.0
"""Time that Ray has to start or restart an actor."""
POLL_S = 0.5


@contextmanager
def ray_engines(
    bundle: Bundle,
    open_engine: OpenEngine,
    *,
    on_gpu: bool,
    cores_per_engine: int,
    log: Callable[[str], object],
    open_screen: OpenScreen = ScreenNetwork,
) -> Iterator[EnginePool]:
    """Open an engine on every GPU of the cluster, or on every `cores_per_engine` CPU cores.

    The bundle is sent to nodes that do not have it; `open_engine` is called in the actors, and `open_screen` when a
    scene is screened.

    Raises:
        EngineError: The cluster is too small for an engine or in use by others, or an engine cannot start.
        MissingExtraError: Ray is not installed.
        UsageError: Versions differ between this machine and the cluster.
    """
    with connected() as ray:
        nodes = nodes_of(ray)
        count = sum(min(node.cores // cores_per_engine, node.gpus if on_gpu else node.cores) for node in nodes)
        if not count:
            got = ", ".join(f"{node.name} with {node.cores} cores and {node.gpus} GPUs" for node in nodes)
            expected = f"{cores_per_engine} cores{' and a GPU' if on_gpu else ''} on one node"
            hint = "Lower --cores-per-actor, or add nodes."
            raise EngineError("The cluster is too small for an engine", got=got, expected=expected, hint=hint)
        copy = BundleCopy.of(bundle, with_content=not check_nodes(ray, nodes, bundle))
        # Ray keeps the arguments of an actor for restarts, so the copy is stored once in its object store.
        fetch_bundle = partial(ray.get, ray.put(copy))
        actor_class = ray.remote(EngineActor).options(
            num_cpus=cores_per_engine,
            num_gpus=int(on_gpu),
            max_restarts=-1,
            max_concurrency=RANGES_PER_ENGINE + 1,  # one more for health checks
        )
        log(f"Opening {_counted(count, 'engine')} on Ray ({_counted(len(nodes), 'node')}).")
        actors = [actor_class.remote(fetch_bundle, open_engine, open_screen) for _ in range(count)]
        info = _require_identical(ray, actors, requested={"CPU": count * cores_per_engine, "GPU": count * on_gpu})
        record = EnginesRecord(
            cluster=f"ray {ray.__version__}",
            backend=info.backend,
            device=info.device,
            count=count,
            cores_per_engine=cores_per_engine,
            nodes=len(nodes),
        )
        with RayExecutor(ray, actors, info) as executor:
            yield EnginePool(executor, record, concurrent_scenes=RANGES_PER_ENGINE * count + 2)


class RayExecutor(SceneExecutor):
    """Distributes row ranges to engine actors that are ready; a context manager, which ends the actors and threads.

    Ray must stay connected until then, because a later call would start a new cluster.
    """

    def __init__(self, ray: Any, actors: Sequence[Any], info: EngineInfo) -> None:
        self._ray, self._actors, self.info = ray, actors, info
        self._queue = RangeQueue()
        self._scene_numbers = itertools.count()
        self._stopped = threading.Event()
        clients = [_ActorClient(ray, actor, self._stopped) for actor in actors]
        self._threads = [
            threading.Thread(target=self._serve, args=(client,), name=f"engine-{number}", daemon=True)
            for number, client in enumerate(clients)
            for _ in range(RANGES_PER_ENGINE)
        ]
        self._serving = len(self._threads)
        self._lock = threading.Lock()

    def run(
        self,
        scene: Scene,
        plan: RowPlan,
        row_ranges: Sequence[RowRange],
        assembly: Assembly,
        *,
        step: Callable[[int], object],
    ) -> ExecutionStats:
        """Run row ranges of a scene; see `SceneExecutor.run`.

        Raises:
            EngineError: All engines are lost.
            SceneError: A row range failed; or a part is unreadable, and the run is strict.
            UsageError: The scene is an array.
        """
        job, seconds = SceneJob(assembly.put, _scene_plan(scene, plan)), Counter[str]()
        for row_range, stages in zip(row_ranges, self._finish(job, row_ranges), strict=True):
            seconds.update(stages)
            step((row_range.stop_row - row_range.first_row) * plan.columns)
        return ExecutionStats(dict(seconds), job.retries)

    def screen(
        self, scene: Scene, layout: ScreenLayout, bands: Sequence[int], *, put: Callable[[BandScores], None]
    ) -> None:
        """Screen bands of a scene; see `SceneExecutor.screen` and `run`."""
        for _ in self._finish(SceneJob(put, _scene_plan(scene, layout)), bands):
            pass

    def _finish(self, job: SceneJob, tasks: Sequence[RowRange | int]) -> Iterator[dict[str, float]]:
        """Distribute tasks, and yield the seconds by stage of each when it is done, in order."""
        number = next(self._scene_numbers)
        waiting = [WaitingRange((number, index), job, task) for index, task in enumerate(tasks)]
        try:
            for item in waiting:
                self._queue.put(item)
            for item in waiting:
                yield item.done.result()
        finally:
            self._queue.drop(job)
            job.close()

    def stop(self) -> None:
        """Make all pending `run` calls fail."""
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

    def _serve(self, client: "_ActorClient") -> None:
        """Run row ranges on an actor until the queue is closed or the actor is permanently lost."""
        while client.wait_until_alive() and (item := self._queue.take()) is not None:
            try:
                result = client.run(item)
                item.job.deliver(result)
                item.done.set_result(result.seconds)
            except _ActorLostError as lost:
                self._requeue(item, counts=lost.while_running)
            except BaseException as error:  # noqa: BLE001 - the thread that waits for the row range raises it
                item.done.set_exception(error)
        with self._lock:
            self._serving -= 1
            if not self._serving:
                hint = "Check `ray status`, then run the same command again to resume."
                self._queue.close(EngineError("All engines are lost", hint=hint))

    def _requeue(self, item: WaitingRange, *, counts: bool) -> None:
        """Return a row range to the queue, or fail it."""
        item.lost_engines += counts
        if item.lost_engines < MAX_LOST_ENGINES:
            if counts:
                item.job.count_retry()
            self._queue.put(item)
            return
        task = item.task
        part = f"band {task} of the screen"
        if isinstance(task, RowRange):
            part = f"rows {task.first_row} to {task.stop_row - 1} of tiles"
        hint = "The file may crash its decoder, or the nodes may have too little memory."
        problem = f"{item.lost_engines} engines were lost while they processed {part}"
        item.done.set_exception(SceneError(problem, hint=hint))


def _scene_plan(scene: Scene, plan: RowPlan | ScreenLayout) -> ScenePlan:
    location = scene.location
    if location is None:
        raise UsageError("A scene in memory cannot run on a cluster", hint="Write it to a file.")
    location = location.absolute() if isinstance(location, Path) else location
    return ScenePlan(location, scene.imagery, scene.info.stretch, plan)


class _ActorLostError(Exception):
    """An actor is lost."""

    def __init__(self, *, while_running: bool) -> None:
        super().__init__()
        self.while_running = while_running


class _ActorClient:
    """Client of an actor, for its two threads."""

    def __init__(self, ray: Any, actor: Any, stopped: threading.Event) -> None:
        self._ray, self._actor, self._stopped = ray, actor, stopped
        self._acquire_lock = threading.Lock()
        self._slots = threading.Semaphore(RANGES_PER_ENGINE)
        self._lost = False

    def run(self, item: WaitingRange) -> RangeResult:
        """Run a row range; exceptions of the actor are raised.

        Raises:
            _ActorLostError: The actor was lost before or during the call.
        """
        errors = self._ray.exceptions
        # The last attempt runs alone, so that no other row range is blamed for a crash.
        slots = RANGES_PER_ENGINE if item.lost_engines == MAX_LOST_ENGINES - 1 else 1
        with self._acquire_lock:
            for _ in range(slots):
                self._slots.acquire()
        try:
            if self._lost:
                raise _ActorLostError(while_running=False)
            result: RangeResult = self._ray.get(self._actor.run.remote(item.job.plan, item.task))
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            self._lost = True
            raise _ActorLostError(while_running=True) from error
        finally:
            self._slots.release(slots)
        return result

    def wait_until_alive(self) -> bool:
        """Wait until a lost actor is restarted, and return whether it is alive; do not wait after `stop`."""
        end = time.monotonic() + RESTART_TIMEOUT_S
        while self._lost and not self._stopped.is_set() and (left := end - time.monotonic()) > 0:
            try:
                self._ray.get(self._actor.info.remote(), timeout=left)
            except self._ray.exceptions.RayError:
                self._stopped.wait(POLL_S)
                continue
            self._lost = False
        return not self._lost


def _require_identical(ray: Any, actors: Sequence[Any], *, requested: Mapping[str, int]) -> EngineInfo:
    """Wait until all engines have started on the `requested` resources, and return their common description.

    Raises:
        EngineError: An engine cannot start, or does not within `RESTART_TIMEOUT_S`.
        UsageError: The engines differ.
    """
    try:
        infos: list[EngineInfo] = ray.get([actor.info.remote() for actor in actors], timeout=RESTART_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError as error:
        free = ray.available_resources()
        for actor in actors:
            ray.kill(actor)
        got = " and ".join(f"{free.get(name, 0):g} {name} available" for name in requested)
        expected = " and ".join(f"{number} {name} in all" for name, number in requested.items())
        hint = "Another job may use the cluster (see `ray status`): wait for its end."
        problem = f"Not all {len(actors)} engines started within {RESTART_TIMEOUT_S:g} s"
        raise EngineError(problem, got=got, expected=expected, hint=hint) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        cause = getattr(error, "cause", None) or error
        reason = next(reversed(str(cause).strip().splitlines()), type(cause).__name__)
        raise EngineError(f"An engine cannot start on Ray ({reason})") from error
    others = {str(info) for info in infos if info != infos[0]}
    if others:
        problem = "The engines of the cluster differ, so their outputs would differ"
        raise UsageError(problem, got="; ".join([str(infos[0]), *sorted(others)]), hint="Use nodes of one type.")
    return infos[0]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
