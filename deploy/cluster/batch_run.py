"""A campaign: many scenes, each into a folder of its own, and one summary.

Scenes run side by side where there are several engines: each in a thread that opens it, hands its bands to the
searcher, and writes what comes back. How many there are at a time is bounded, so memory does not follow their number. A
scene that cannot be searched is reported, and the others go on.
"""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio

from deploy.cluster.completed_scenes import CompletedScenes
from deploy.cluster.result_store import ResultStore
from deploy.cluster.scene_list import SceneSource
from deploy.cluster.summary import SceneEntry, Summary, summarize
from deploy.cluster.summary_page import SUMMARY_NAMES, write_summary
from deploy.scene.read.scene import CACHE_BYTES
from deploy.scene.run.executor import SceneExecutor
from deploy.scene.run.pipeline import BarOpener, batch_size
from deploy.scene.scene_run import SceneRequest, run_scene
from deploy.scene.settings import grid_for, tile_for
from deploy.scene.write.output_folder import PRODUCER, STAGE_NAME, require_own
from export.bundle.bundle import MANIFEST_NAME
from ifkd import __version__
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.files import acquire_lock, make_folder, sha256_of
from ifkd.core.progress import progress
from ifkd.imagery.address import HTTP_OPTIONS

ANY_SIZE = (1_000_000, 1_000_000)
"""Of a scene, pixels: what does not fit it fits none."""
SCENES_SHOWN = 3
"""Of those that run side by side, behind the bar."""


@dataclass(frozen=True, slots=True, eq=False)
class EnginePool:
    """Who looks at the scenes of a campaign."""

    searcher: SceneExecutor
    facts: dict[str, Any]
    """What the summary says of them."""
    scenes_at_once: int
    """Scenes that are open at a time; one is looked at by the calling thread, with a bar of its own."""


class BatchRun:
    """The scenes of a run and their places.

    Args:
        request: What is asked of each scene.
        sources: The scenes.
        store: Where results go.
        engine_facts: What the choice of an engine depends on: backend, precision, threads.
        say: Takes lines for the user.
    """

    def __init__(
        self,
        request: SceneRequest,
        sources: Sequence[SceneSource],
        store: ResultStore,
        *,
        engine_facts: dict[str, Any],
        say: Callable[[str], object],
    ) -> None:
        self._wish = request
        self._sources = tuple(sources)
        self._store = store
        self._say = say
        self._stage = store.work / STAGE_NAME
        self._bundle = {
            "path": str(request.bundle.path),
            "manifest_sha256": sha256_of(request.bundle.path / MANIFEST_NAME),
        }
        self._identity = {
            "program": f"{PRODUCER} {__version__}",
            "bundle": {"manifest_sha256": self._bundle["manifest_sha256"]},
            "engine": engine_facts,
            "batch": request.batch,
            "bands": request.bands,
            "scale_range": request.scale_range,
            "nodata": request.nodata,
            "formats": request.formats,
            "settings": request.settings.model_dump(mode="json"),
        }

    def run(self, engines: Callable[[], AbstractContextManager[EnginePool]]) -> Summary:
        """Look at all scenes that no earlier run had done, write everything, and return the summary.

        Args:
            engines: Opens who looks; called when everything else is known to fit.

        Raises:
            EngineError: The engines cannot run, or none is left; the same command goes on.
            OutputError: A place cannot be written, is another's, or holds an unfinished run with other settings.
            UsageError: A setting fits no scene.
        """
        settings = self._wish.settings
        grid_for(ANY_SIZE, tile_for(ANY_SIZE, self._wish.bundle.manifest.input.sizes, settings), settings)
        self._store.require_access([source.name for source in self._sources])
        fresh = not self._stage.is_dir()
        if fresh:
            require_own(self._store.work, SUMMARY_NAMES, record=SUMMARY_NAMES[0])
        make_folder(self._stage)
        with ExitStack() as held:
            held.enter_context(_locked(self._stage / "lock", self._store.work))
            path = self._stage / "ledger"
            if self._wish.restart:
                path.unlink(missing_ok=True)
            ledger = held.enter_context(CompletedScenes(path, self._identity))
            done = {source.name: entry for source in self._sources if (entry := ledger.entry(source)) is not None}
            if done:
                self._say(
                    f"An earlier run had finished {len(done)} of {len(self._sources)} scenes; going on from there."
                )
            with engines() as chosen:
                batch_size(self._wish.batch, chosen.searcher.info.max_batch)
                began = time.perf_counter()
                entries = {**done, **self._look(chosen, ledger, done)}
                seconds = time.perf_counter() - began
            summary = summarize(
                [entries[source.name] for source in self._sources],
                earlier=frozenset(done),
                bundle=self._bundle,
                engines=chosen.facts,
                seconds=seconds,
            )
            write_summary(summary, self._store.work)
            self._store.put(SUMMARY_NAMES)
        shutil.rmtree(self._stage)
        return summary

    def _look(self, engines: EnginePool, ledger: CompletedScenes, done: dict[str, SceneEntry]) -> dict[str, SceneEntry]:
        """Return the entries of the scenes that are not done."""
        waiting = [source for source in self._sources if source.name not in done]
        found: dict[str, SceneEntry] = {}
        alone = engines.scenes_at_once == 1
        with (
            rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **HTTP_OPTIONS),
            progress(len(self._sources), "Scenes", unit="scene", initial=len(done), silent=alone) as bar,
        ):
            board = _Board(bar)
            for source, entry in self._entries(engines, waiting, board):
                found[source.name] = entry
                if entry.state == "done":
                    ledger.append(source, entry)
                self._say(_line(entry, len(done) + len(found), len(self._sources)))
                bar.update()
        return found

    def _entries(
        self, engines: EnginePool, waiting: Sequence[SceneSource], board: "_Board"
    ) -> Iterator[tuple[SceneSource, SceneEntry]]:
        """Yield scenes as they end; when anything but a scene fails, no other begins."""
        if engines.scenes_at_once == 1:
            for source in waiting:
                yield source, self._entry(engines, source, show_progress=True)
            return
        left = deque(waiting)
        with ThreadPoolExecutor(engines.scenes_at_once, thread_name_prefix="scene") as threads:
            running: dict[Future[SceneEntry], SceneSource] = {}
            try:
                while True:
                    while left and len(running) < engines.scenes_at_once:
                        source = left.popleft()
                        future = threads.submit(self._entry, engines, source, show_progress=board.opener(source.name))
                        running[future] = source
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            except BaseException:
                engines.searcher.stop()  # or the threads would wait for their scenes' end
                raise

    def _entry(self, engines: EnginePool, source: SceneSource, *, show_progress: bool | BarOpener) -> SceneEntry:
        folder = self._store.work / source.name
        try:
            run = run_scene(
                self._wish,
                source.place,
                folder,
                searcher=lambda: engines.searcher,
                say=lambda line: self._say(f"{source.name}: {line}"),
                show_progress=show_progress,
            )
        except (SceneError, UsageError) as error:
            _remove_if_empty(folder)
            return SceneEntry.of_failure(source, str(error))
        self._store.publish(source.name)
        return SceneEntry.of_result(source, run.result, run.record["seconds"])


class _Board:
    """How far scenes are that run side by side, told behind the bar of all."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._shares: dict[str, float] = {}

    def opener(self, name: str) -> BarOpener:
        """Return what opens the bar of a scene."""

        @contextmanager
        def opened(total: int, initial: int) -> Iterator["_SceneBar"]:
            bar = _SceneBar(lambda share: self._tell(name, share), total, initial)
            try:
                bar.update(0)
                yield bar
            finally:
                self._tell(name, None)

        return opened

    def _tell(self, name: str, share: float | None) -> None:
        with self._lock:
            if share is None:
                self._shares.pop(name, None)
            else:
                self._shares[name] = share
            shown = [f"{one} {share:.0%}" for one, share in list(self._shares.items())[:SCENES_SHOWN]]
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(0)


class _SceneBar:
    """The bar of one scene among others."""

    def __init__(self, tell: Callable[[float], object], total: int, done: int) -> None:
        self._tell, self._total, self._done = tell, total, done

    def update(self, tiles: int) -> None:
        """Tell that so many tiles more are done."""
        self._done += tiles
        self._tell(self._done / self._total)


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


def _line(entry: SceneEntry, number: int, total: int) -> str:
    if entry.state == "failed":
        return f"[{number}/{total}] {entry.name} failed: {entry.problem}"
    torn = f", {entry.holes} tiles could not be read" if entry.holes else ""
    again = f", {entry.retries} bands looked at again" if entry.retries else ""
    return f"[{number}/{total}] {entry.name}: {entry.objects} objects in {entry.seconds['total']:.1f} s{torn}{again}"
