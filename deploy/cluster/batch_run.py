"""Batch run: many scenes, each with a folder for its results, and one summary.

With several engines, scenes run concurrently, each in a thread that opens it, passes its row ranges to the executor and
writes the results. The number of open scenes is bounded, so memory does not grow with the number of scenes. If a scene
fails, it is reported, and the others continue.
"""

import os
import shutil
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

from deploy.cluster.collection import write_collection
from deploy.cluster.completed_scenes import CompletedScenes
from deploy.cluster.engine_pool import EnginePool
from deploy.cluster.engine_startup import open_engine_pool
from deploy.cluster.summary import SceneEntry, Summary, summarize
from deploy.cluster.summary_page import write_summary
from deploy.engines.engine import EngineInfo
from deploy.scene.detect_plan import DetectPlan
from deploy.scene.read.scene import gdal_environment
from deploy.scene.read.scene_list import LIST_FORMAT, SceneSource
from deploy.scene.run.pipeline import ProgressFactory, resolve_batch
from deploy.scene.scene_run import run_scene
from deploy.scene.settings import grid_for, tile_for
from deploy.scene.write.file_names import BATCH_FILES, BATCH_STATE_FOLDER, PRODUCER, SUMMARY_FILE, SUMMARY_PAGE_FILE
from deploy.scene.write.output_folder import require_own_files
from deploy.scene.write.run_record import BundleReference, bundle_identity
from ifkd import __version__
from ifkd.core.errors import EngineError, IfkdError, OutputError, UsageError
from ifkd.core.files import acquire_lock, folded, make_folder
from ifkd.core.progress import progress

LARGE_SCENE = (1_000_000, 1_000_000)
"""A setting that is invalid for a scene of this (height, width) is invalid for every scene."""
SCENES_SHOWN = 3
"""Concurrent scenes that the progress bar shows."""


class BatchRun:
    """A run over many scenes; `log` receives messages for the user."""

    def __init__(self, plan: DetectPlan, log: Callable[[str], object]) -> None:
        self._plan, self._log = plan, log
        self._state = plan.store.work / BATCH_STATE_FOLDER
        self._bundle = BundleReference.of_folder(plan.request.bundle.path)

    def run(self) -> Summary:
        """Process all scenes that an earlier run has not completed, write all results, and return the summary.

        The engines are opened after all inputs are checked.

        Raises:
            EngineError: The engines cannot run, or all are lost; the run can be resumed.
            OutputError: A folder is not writable, has files of another program, or has an unfinished run with other
                settings.
            UsageError: A setting is invalid for every scene, or a scene has the name of a file of the batch.
        """
        plan, request = self._plan, self._plan.request
        taken = next((source for source in plan.scenes if folded(source.name) in BATCH_FILES), None)
        if taken is not None:
            problem = f"{taken.location} ({taken.origin}) cannot have the name of a file of the batch"
            hint = f"Set another name in a text list: {LIST_FORMAT}."
            raise UsageError(problem, got=taken.name, hint=hint)
        tile_px = tile_for(LARGE_SCENE, request.bundle.manifest.input.sizes, request.settings)
        grid_for(LARGE_SCENE, tile_px, request.settings)
        plan.store.require_access([source.name for source in plan.scenes])
        if not self._state.is_dir():
            require_own_files(plan.store.work, BATCH_FILES, record=SUMMARY_FILE)
        make_folder(self._state)
        log_path = self._state / "completed_scenes.jsonl"
        with os.fdopen(acquire_lock(self._state / "lock", folder=plan.store.work), "rb"):
            if not request.resume:
                log_path.unlink(missing_ok=True)
            filters = request.filters.identity() if request.filters is not None else None
            with open_engine_pool(plan, self._log) as pool:
                resolve_batch(request.batch, pool.executor.info.max_batch)
                with CompletedScenes(log_path, self._identity(pool.executor.info), filters=filters) as completed:
                    summary = self._process_all(pool, completed)
            names = write_collection(summary.entries, request.bundle.manifest, plan.store.work)
            write_summary(summary, plan.store.work)
            plan.store.put((*names, SUMMARY_PAGE_FILE, SUMMARY_FILE))
        shutil.rmtree(self._state)
        return summary

    def _identity(self, engine: EngineInfo) -> dict[str, Any]:
        """Return everything that the results depend on except the scenes."""
        request = self._plan.request
        return {
            "program": f"{PRODUCER} {__version__}",
            "bundle": bundle_identity(request.bundle.manifest, request.settings),
            "engine": asdict(engine),
            "batch": request.batch,
            "bands": request.bands,
            "scale_range": request.scale_range,
            "nodata": request.nodata,
            "alpha": request.alpha,
            "formats": request.formats,
            "crops": request.crops,
            "settings": request.settings.model_dump(mode="json"),
        }

    def _process_all(self, pool: EnginePool, completed: CompletedScenes) -> Summary:
        scenes = self._plan.scenes
        found = {source.name: completed.entry(source) for source in scenes}
        entries = {name: entry for name, entry in found.items() if entry and self._plan.store.has_results(name)}
        earlier = frozenset(entries)
        if earlier:
            self._log(f"Resuming: an earlier run completed {len(earlier)} of {len(scenes)} scenes.")
        remaining = [source for source in scenes if source.name not in earlier]
        start, silent = time.perf_counter(), pool.concurrent_scenes == 1
        bar = progress(len(scenes), "Scenes", unit="scene", initial=len(earlier), silent=silent)
        with gdal_environment(), bar:
            for source, entry in self._process(pool, remaining, _ConcurrentProgress(bar)):
                entries[source.name] = entry
                if entry.state == "done":
                    completed.append(source, entry)
                self._log(_message(entry, len(entries), len(scenes)))
                bar.update()
        seconds = time.perf_counter() - start
        ordered = [entries[source.name] for source in scenes]
        return summarize(ordered, earlier=earlier, bundle=self._bundle, engines=pool.record, seconds=seconds)

    def _process(
        self, pool: EnginePool, remaining: Sequence[SceneSource], concurrent: "_ConcurrentProgress"
    ) -> Iterator[tuple[SceneSource, SceneEntry]]:
        """Yield scenes as they finish. An error that is not a scene's own stops the run."""
        if pool.concurrent_scenes == 1:
            for source in remaining:
                yield source, self._process_scene(pool, source, show_progress=True)
            return
        waiting = deque(remaining)
        with ThreadPoolExecutor(pool.concurrent_scenes, thread_name_prefix="scene") as threads:
            running: dict[Future[SceneEntry], SceneSource] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < pool.concurrent_scenes:
                        source = waiting.popleft()
                        show_progress = partial(concurrent.open_bar, source.name)
                        future = threads.submit(self._process_scene, pool, source, show_progress=show_progress)
                        running[future] = source
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            except BaseException:
                pool.executor.stop()  # otherwise the threads would wait until their scenes are done
                raise

    def _process_scene(
        self, pool: EnginePool, source: SceneSource, *, show_progress: bool | ProgressFactory
    ) -> SceneEntry:
        folder = self._plan.store.work / source.name
        try:
            run = run_scene(
                self._plan.request,
                source,
                folder,
                executor=lambda: pool.executor,
                log=lambda message: self._log(f"{source.name}: {message}"),
                in_collection=True,
                show_progress=show_progress,
            )
        except (EngineError, OutputError):  # the next scene would fail, too
            raise
        except Exception as error:  # noqa: BLE001 - also a bug that only one scene causes must not end the others
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            if isinstance(error, IfkdError):
                return SceneEntry.of_failure(source, str(error))
            self._log(f"{source.name}: {traceback.format_exc()}")
            return SceneEntry.of_failure(source, f"A bug of ifkd: {type(error).__name__}: {error}")
        self._plan.store.publish(source.name)
        return SceneEntry.of_run(source, run)


class _ConcurrentProgress:
    """Progress of concurrent scenes, shown after the progress bar of all scenes."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._fractions: dict[str, float] = {}

    @contextmanager
    def open_bar(self, name: str, total: int, initial: int) -> Iterator[SimpleNamespace]:
        """Yield the progress bar of a scene; see `ProgressFactory`."""
        done = initial

        def update(tiles: int) -> None:
            nonlocal done
            done += tiles
            self._show(name, done / total)

        try:
            update(0)
            yield SimpleNamespace(update=update)
        finally:
            self._show(name, None)

    def _show(self, name: str, fraction: float | None) -> None:
        with self._lock:
            if fraction is None:
                self._fractions.pop(name, None)
            else:
                self._fractions[name] = fraction
            shown = list(self._fractions.items())[:SCENES_SHOWN]
            self._bar.set_postfix_str(", ".join(f"{name} {value:.0%}" for name, value in shown), refresh=False)
            self._bar.update(0)


def _message(entry: SceneEntry, number: int, total: int) -> str:
    if entry.state == "failed":
        return f"[{number}/{total}] {entry.name} failed: {entry.problem}"
    unreadable = f", {entry.unreadable_tiles} tiles could not be read" if entry.unreadable_tiles else ""
    retried = f", {entry.retried_row_ranges} row ranges retried" if entry.retried_row_ranges else ""
    screen = f". {entry.screen_problem}" if entry.screen_problem else ""
    seconds = entry.seconds["total"]
    return f"[{number}/{total}] {entry.name}: {entry.objects} objects in {seconds:.1f} s{unreadable}{retried}{screen}"
