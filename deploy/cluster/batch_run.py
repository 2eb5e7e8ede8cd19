"""Batch run: many scenes, each with a folder for its results, and one summary.

With several engines, scenes run concurrently, each in a thread that opens it, passes its row ranges to the executor and
writes the results. The number of open scenes is bounded, so memory does not grow with the number of scenes. If a scene
fails, it is reported, and the others continue.
"""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.cluster.completed_scenes import CompletedScenes
from deploy.cluster.engine_pool import EnginePool
from deploy.cluster.summary import SceneEntry, Summary, summarize
from deploy.cluster.summary_page import write_summary
from deploy.scene.detect_plan import DetectPlan
from deploy.scene.read.scene import gdal_environment
from deploy.scene.read.scene_list import SceneSource
from deploy.scene.run.pipeline import ProgressFactory, resolve_batch
from deploy.scene.scene_run import run_scene
from deploy.scene.settings import grid_for, tile_for
from deploy.scene.write.file_names import PRODUCER, STATE_FOLDER, SUMMARY_FILE, SUMMARY_PAGE_FILE
from deploy.scene.write.output_folder import require_own_files
from deploy.scene.write.run_record import BundleReference
from ifkd import __version__
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.files import acquire_lock, make_folder
from ifkd.core.progress import progress

LARGE_SCENE = (1_000_000, 1_000_000)
"""A setting that is invalid for a scene of this (height, width) is invalid for every scene."""
SCENES_SHOWN = 3
"""Concurrent scenes that the progress bar shows."""


class BatchRun:
    """A run over many scenes.

    Args:
        plan: The plan.
        log: Receives messages for the user.
    """

    def __init__(self, plan: DetectPlan, log: Callable[[str], object]) -> None:
        self._plan = plan
        self._log = log
        self._state = plan.store.work / STATE_FOLDER
        self._bundle = BundleReference.of_folder(plan.request.bundle.path)

    def run(self, open_pool: Callable[[], AbstractContextManager[EnginePool]]) -> Summary:
        """Process all scenes that an earlier run has not completed, write all results, and return the summary.

        Args:
            open_pool: Opens the engines; called after all inputs are checked.

        Raises:
            EngineError: The engines cannot run, or all are lost; the run can be resumed.
            OutputError: A folder is not writable, has files of another program, or has an unfinished run with other
                settings.
            UsageError: A setting is invalid for every scene.
        """
        plan, request = self._plan, self._plan.request
        grid_for(
            LARGE_SCENE, tile_for(LARGE_SCENE, request.bundle.manifest.input.sizes, request.settings), request.settings
        )
        plan.store.require_access([source.name for source in plan.scenes])
        if not self._state.is_dir():
            require_own_files(plan.store.work, (SUMMARY_FILE, SUMMARY_PAGE_FILE), record=SUMMARY_FILE)
        make_folder(self._state)
        log_path = self._state / "completed_scenes.jsonl"
        with _locked(self._state / "lock", plan.store.work):
            if not request.resume:
                log_path.unlink(missing_ok=True)
            with CompletedScenes(log_path, self._identity()) as completed:
                summary = self._process_all(completed, open_pool)
            write_summary(summary, plan.store.work)
            plan.store.put((SUMMARY_FILE, SUMMARY_PAGE_FILE))
        shutil.rmtree(self._state)
        return summary

    def _identity(self) -> dict[str, Any]:
        """Return everything that the results depend on except the scenes."""
        request = self._plan.request
        return {
            "program": f"{PRODUCER} {__version__}",
            "bundle": {"manifest_sha256": self._bundle.manifest_sha256},
            "engine": asdict(self._plan.engine),
            "batch": request.batch,
            "bands": request.bands,
            "scale_range": request.scale_range,
            "nodata": request.nodata,
            "formats": request.formats,
            "settings": request.settings.model_dump(mode="json"),
        }

    def _process_all(
        self, completed: CompletedScenes, open_pool: Callable[[], AbstractContextManager[EnginePool]]
    ) -> Summary:
        scenes = self._plan.scenes
        done = {source.name: entry for source in scenes if (entry := completed.entry(source)) is not None}
        if done:
            self._log(f"Resuming: an earlier run completed {len(done)} of {len(scenes)} scenes.")
        with open_pool() as pool:
            resolve_batch(self._plan.request.batch, pool.executor.info.max_batch)
            start = time.perf_counter()
            entries = {**done, **self._process_remaining(pool, completed, done)}
            seconds = time.perf_counter() - start
        return summarize(
            [entries[source.name] for source in scenes],
            earlier=frozenset(done),
            bundle=self._bundle,
            engines=pool.record,
            seconds=seconds,
        )

    def _process_remaining(
        self, pool: EnginePool, completed: CompletedScenes, done: dict[str, SceneEntry]
    ) -> dict[str, SceneEntry]:
        """Return the entries of the scenes that are not done."""
        scenes = self._plan.scenes
        remaining = [source for source in scenes if source.name not in done]
        entries: dict[str, SceneEntry] = {}
        silent = pool.concurrent_scenes == 1
        with (
            gdal_environment(),
            progress(len(scenes), "Scenes", unit="scene", initial=len(done), silent=silent) as bar,
        ):
            concurrent = _ConcurrentProgress(bar)
            for source, entry in self._process(pool, remaining, concurrent):
                entries[source.name] = entry
                if entry.state == "done":
                    completed.append(source, entry)
                self._log(_message(entry, len(done) + len(entries), len(scenes)))
                bar.update()
        return entries

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
                while True:
                    while waiting and len(running) < pool.concurrent_scenes:
                        source = waiting.popleft()
                        factory = concurrent.factory(source.name)
                        running[threads.submit(self._process_scene, pool, source, show_progress=factory)] = source
                    if not running:
                        return
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
                source.location,
                folder,
                executor=lambda: pool.executor,
                log=lambda message: self._log(f"{source.name}: {message}"),
                show_progress=show_progress,
            )
        except (SceneError, UsageError) as error:
            _remove_if_empty(folder)
            return SceneEntry.of_failure(source, str(error))
        self._plan.store.publish(source.name)
        return SceneEntry.of_run(source, run)


class _ConcurrentProgress:
    """Progress of concurrent scenes, shown after the progress bar of all scenes."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._fractions: dict[str, float] = {}

    def factory(self, name: str) -> ProgressFactory:
        """Return the progress factory of a scene."""

        @contextmanager
        def open_bar(total: int, initial: int) -> Iterator["_SceneProgress"]:
            bar = _SceneProgress(lambda fraction: self._show(name, fraction), total, initial)
            try:
                bar.update(0)
                yield bar
            finally:
                self._show(name, None)

        return open_bar

    def _show(self, name: str, fraction: float | None) -> None:
        with self._lock:
            if fraction is None:
                self._fractions.pop(name, None)
            else:
                self._fractions[name] = fraction
            shown = list(self._fractions.items())[:SCENES_SHOWN]
            self._bar.set_postfix_str(", ".join(f"{name} {value:.0%}" for name, value in shown), refresh=False)
            self._bar.update(0)


class _SceneProgress:
    """Progress bar of one of several concurrent scenes."""

    def __init__(self, show: Callable[[float], object], total: int, done: int) -> None:
        self._show, self._total, self._done = show, total, done

    def update(self, tiles: int) -> None:
        """Add finished tiles."""
        self._done += tiles
        self._show(self._done / self._total)


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    handle = acquire_lock(path, folder=folder)
    try:
        yield
    finally:
        os.close(handle)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _message(entry: SceneEntry, number: int, total: int) -> str:
    if entry.state == "failed":
        return f"[{number}/{total}] {entry.name} failed: {entry.problem}"
    unreadable = f", {entry.unreadable_tiles} tiles could not be read" if entry.unreadable_tiles else ""
    retried = f", {entry.retried_row_ranges} row ranges retried" if entry.retried_row_ranges else ""
    seconds = entry.seconds["total"]
    return f"[{number}/{total}] {entry.name}: {entry.objects} objects in {seconds:.1f} s{unreadable}{retried}"
