"""From a scene to its objects: read ahead, infer in batches, decode, merge.

    reading thread: rows of the scene ─► tiles ─► scaled to the engine ─► bounded queue
    calling thread: queue ─► batches (across rows) ─► engine ─► detections of tiles ─► merge

Only the queue, one band of rows and the detections are held, so memory follows the width of the scene and the
number of objects, not its area. The result does not depend on the batch size.
"""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deploy.engine import Backend, Engine
from deploy.engines import open_engine
from deploy.scenes.merge import TileDetections, merge
from deploy.scenes.result import Hole, SceneResult, tile_name
from deploy.scenes.scene import Scene, TileRead, read_tiles
from deploy.scenes.settings import DetectionSettings, grid_for, settings_for
from export.bundle import Bundle, open_bundle
from export.manifest import Precision
from ifkd.data.imagery import resize
from ifkd.detections import Array
from ifkd.errors import SceneError, UsageError
from ifkd.postprocess import select_detections
from ifkd.progress import progress
from ifkd.tiling import TileGrid, Window

BATCHES_AHEAD = 2


def detect(
    bundle: Bundle | Path | str,
    scene: Scene | Path | str | Array,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    batch: int | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> SceneResult:
    """Find the objects of a scene.

    Args:
        bundle: A bundle, or its folder.
        scene: A raster file, an array [height, width(, bands)], or an opened `Scene`.
        backend: The runtime.
        precision: Which of the bundle's files.
        threads: CPU threads of the runtime; by default all cores.
        batch: Tiles per call of the engine; by default the most it takes.
        show_progress: Show a bar on stderr.
        **settings: Those of `settings_for`: score, overlap_px, gsd_m, merge, metric, strict.

    Raises:
        BundleError: The bundle does not hold.
        EngineError: The engine cannot run here.
        SceneError: The scene cannot be read.
        UsageError: A setting does not fit.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    chosen = settings_for(opened.manifest, **settings)
    own = not isinstance(scene, Scene)
    raster = scene if isinstance(scene, Scene) else Scene(Path(scene) if isinstance(scene, str) else scene)
    try:
        grid_for(raster.size, opened.manifest.input.tile_px, chosen)
        with open_engine(opened, backend=backend, precision=precision, threads=threads) as engine:
            return detect_scene(
                engine,
                raster,
                chosen,
                category_ids=opened.manifest.category_ids,
                batch=batch,
                show_progress=show_progress,
            )
    finally:
        if own:
            raster.close()


def detect_scene(
    engine: Engine,
    scene: Scene,
    settings: DetectionSettings,
    *,
    category_ids: tuple[int, ...] | None = None,
    batch: int | None = None,
    show_progress: bool = False,
) -> SceneResult:
    """Find the objects of a scene with an engine.

    Args:
        engine: Answers tiles.
        scene: What to look at.
        settings: How.
        category_ids: COCO category id by label; by default the labels, counted from 1.
        batch: Tiles per call; by default the most the engine takes.
        show_progress: Show a bar on stderr.

    Raises:
        SceneError: No part of the scene can be read; with `settings.strict`, any part.
        UsageError: The batch or the overlap does not fit the engine.
    """
    began = time.perf_counter()
    info = engine.info
    grid = grid_for(scene.size, info.tile_px, settings)
    size = _batch_size(batch, info.max_batch)
    watch = _Watch()
    found: list[TileDetections] = []
    holes: list[Hole] = []
    skipped = 0
    with (
        _ReadAhead(scene, grid, info.tile_px, depth=BATCHES_AHEAD * size) as tiles,
        progress(len(grid), f"Detecting in {scene.info.name}", unit="tile") if show_progress else _Silent() as bar,
    ):
        waiting: list[_Tile] = []
        for tile in watch.waits(tiles):
            if tile.problem is not None:
                holes.append(_hole(tile, grid, strict=settings.strict))
            elif tile.pixels is None:
                skipped += 1
            else:
                waiting.append(tile)
            if len(waiting) == size:
                found += _look(engine, waiting, settings, scene.size, watch)
                waiting.clear()
            bar.update()
        if waiting:
            found += _look(engine, waiting, settings, scene.size, watch)
        seconds = tiles.seconds
    if len(holes) == len(grid):
        raise SceneError(f"No tile of {scene.info.name} can be read. The first says: {holes[0].problem}")
    with watch("merge"):
        merged = merge(TileDetections.concatenate(found), settings.merge)
    return SceneResult(
        detections=merged.detections,
        tiles=merged.tiles,
        scene=scene.info,
        engine=info,
        settings=settings,
        grid=grid,
        category_ids=category_ids or tuple(range(1, len(info.classes) + 1)),
        skipped=skipped,
        holes=tuple(holes),
        seconds={**seconds, **watch.seconds, "total": time.perf_counter() - began},
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    """A tile that is ready for the engine; without pixels it is empty, or a hole."""

    index: int
    window: Window
    pixels: Array | None
    """uint8 [3, height, width]."""
    problem: str | None = None


class _Watch:
    """Seconds by stage, of one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def waits(self, items: Iterator["_Tile"]) -> Iterator["_Tile"]:
        """Yield `items` and count the time spent on waiting for them."""
        while True:
            with self("wait"):
                item = next(items, None)
            if item is None:
                return
            yield item


class _Silent:
    """A progress bar that nobody sees."""

    def __enter__(self) -> "_Silent":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is shown."""

    def update(self) -> None:
        """Nothing is shown."""


class _ReadAhead:
    """Tiles made ready by a thread of its own, a bounded number ahead; its errors come out of the iteration."""

    def __init__(self, scene: Scene, grid: TileGrid, tile_px: tuple[int, int], *, depth: int) -> None:
        self._queue: queue.Queue[_Tile | BaseException | None] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._watch = _Watch()
        self._tiles = self._ready(read_tiles(scene, grid), tile_px)
        self._thread = threading.Thread(target=self._work, name="scene-reader", daemon=True)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent on reading and on preparing; complete when the iteration has ended."""
        return self._watch.seconds

    def __enter__(self) -> "_ReadAhead":  # noqa: PYI034 - beartype cannot check Self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[_Tile]:
        return self

    def __next__(self) -> _Tile:
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

    def _put(self, item: "_Tile | BaseException | None") -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _ready(self, reads: Iterator[TileRead], tile_px: tuple[int, int]) -> Iterator[_Tile]:
        while True:
            with self._watch("read"):
                read = next(reads, None)
            if read is None:
                return
            with self._watch("preprocess"):
                pixels = None
                if read.patch is not None and read.patch.valid.any():
                    scaled = resize(np.ascontiguousarray(read.patch.pixels), tile_px)
                    pixels = np.ascontiguousarray(scaled.transpose(2, 0, 1))
                tile = _Tile(read.index, read.window, pixels, read.problem)
            yield tile


def _look(
    engine: Engine, tiles: list[_Tile], settings: DetectionSettings, size: tuple[int, int], watch: _Watch
) -> list[TileDetections]:
    """Return what an engine finds in some tiles, in scene pixels."""
    with watch("infer"):
        candidates = engine.infer(np.stack([tile.pixels for tile in tiles if tile.pixels is not None]))
    with watch("decode"):
        chosen = select_detections(candidates, settings.selection, size=engine.info.tile_px)
        factor = 1.0 / settings.scale
        return [
            TileDetections.of_tile(
                found.scaled(factor).moved(right=float(tile.window.left), down=float(tile.window.top)).clipped(size),
                tile.index,
                window=tile.window,
                size=size,
            )
            for tile, found in zip(tiles, chosen, strict=True)
            if len(found)
        ]


def _hole(tile: _Tile, grid: TileGrid, *, strict: bool) -> Hole:
    if strict:
        raise SceneError(f"{tile.problem} This run is strict, so it stops here")
    return Hole(tile_name(tile.index, len(grid.lefts)), tile.window, tile.problem or "")


def _batch_size(asked: int | None, most: int) -> int:
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise UsageError("The batch does not fit the engine", got=asked, expected=f"1 to {most}")
    return asked
