"""From a scene to its objects: read ahead, infer in batches, decode and merge behind.

    reading thread:   rows of the scene ─► tiles ─► scaled to the engine ─► bounded queue
    calling thread:   queue ─► batches (across rows) ─► engine, one batch ahead on a GPU ─► bounded queue
    finishing thread: queue ─► detections of tiles ─► finished row ─► journal ─► streaming merge

Only the queues, one band of rows, the rows that still wait for a neighbour, and the objects are held, so memory follows
the width of the scene and the number of objects, not its area. The result does not depend on the batch size; and a run
that goes on from its journal gives the engine the same batches as one that was never cut off.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from deploy.engine import Backend, Engine
from deploy.engines import open_engine
from deploy.scenes.area import Reach, reach_of
from deploy.scenes.journal import Journal, RowRecord
from deploy.scenes.merge import TileDetections
from deploy.scenes.result import Hole, SceneResult, tile_name
from deploy.scenes.scene import CACHE_BYTES, Scene
from deploy.scenes.settings import DetectionSettings, grid_for, settings_for, tile_for
from deploy.scenes.stages import Background, ReadAhead, ReadyTile, Stopwatch
from deploy.scenes.streaming import StreamingMerge
from deploy.scenes.tile_reader import read_tiles
from export.bundle import Bundle, open_bundle
from export.manifest import Precision
from ifkd.detections import Array, Candidates
from ifkd.errors import SceneError, UsageError
from ifkd.postprocess import select_detections
from ifkd.progress import progress
from ifkd.tiling import TileGrid

BATCHES_AHEAD = 2
BATCHES_BEHIND = 2


def detect(
    bundle: Bundle | Path | str,
    scene: Scene | Path | str | Array,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    server: str | None = None,
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
        server: URL of the Triton server, or of a model on it, for the backend triton.
        batch: Tiles per call of the engine; by default the most it takes.
        show_progress: Show a bar on stderr.
        **settings: Those of `settings_for`: score, overlap_px, gsd_m, merge, metric, area, strict, tile_px.

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
        grid_for(raster.size, tile_for(raster.size, opened.manifest.input.sizes, chosen), chosen)
        with open_engine(opened, backend=backend, precision=precision, threads=threads, server=server) as engine:
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
    journal: Journal | None = None,
) -> SceneResult:
    """Find the objects of a scene with an engine.

    Args:
        engine: Answers tiles.
        scene: What to look at.
        settings: How.
        category_ids: COCO category id by label; by default the labels, counted from 1.
        batch: Tiles per call; by default the most the engine takes.
        show_progress: Show a bar on stderr.
        journal: Where finished rows are written down; those it already holds are taken from it.

    Raises:
        SceneError: No part of the scene can be read; with `settings.strict`, any part.
        UsageError: The batch or the overlap does not fit the engine.
    """
    began = time.perf_counter()
    tile_px = tile_for(scene.size, engine.info.sizes, settings)
    grid = grid_for(scene.size, tile_px, settings)
    size = batch_size(batch, engine.info.max_batch)
    reach = reach_of(settings.area, scene.info, grid)
    watch = Stopwatch()
    rows = _Rows(grid, settings, tile_px, journal)
    start = rows.resume(size)
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        ReadAhead(
            read_tiles(scene, grid, first_row=start.row, wanted=None if reach is None else reach.wanted),
            tile_px,
            depth=BATCHES_AHEAD * size,
        ) as tiles,
        Background(rows.take, depth=BATCHES_BEHIND) as behind,
        progress(len(grid), f"Detecting in {scene.info.name}", unit="tile", initial=start.row * rows.columns)
        if show_progress
        else _Silent() as bar,
    ):
        look = _Batches(_shown(watch.waits(tiles), bar, strict=settings.strict), size=size, watch=watch, start=start)
        for candidates in watch.waits(engine.infer_each(look.batches()), "infer"):
            behind.put(_Answered(look.asked.popleft(), candidates))
        behind.put(_Answered(look.rest(), None))
        seconds = tiles.seconds
    if rows.holes and len(rows.holes) + rows.outside == len(grid):
        raise SceneError(f"No tile of {scene.info.name} can be read. The first says: {rows.holes[0].problem}")
    found = rows.finish(reach)
    return SceneResult(
        detections=found.detections,
        tiles=found.tiles,
        scene=scene.info,
        engine=engine.info,
        settings=settings,
        grid=grid,
        category_ids=category_ids or tuple(range(1, len(engine.info.classes) + 1)),
        skipped=rows.empty,
        outside=rows.outside,
        holes=tuple(rows.holes),
        resumed_rows=rows.resumed,
        seconds={**seconds, **watch.seconds, **rows.watch.seconds, "total": time.perf_counter() - began},
    )


def batch_size(asked: int | None, most: int) -> int:
    """Return the tiles per call of an engine that takes at most `most`.

    Raises:
        UsageError: More were asked for, or none.
    """
    if asked is None:
        return most
    if not 1 <= asked <= most:
        raise UsageError("The batch does not fit the engine", got=asked, expected=f"1 to {most}")
    return asked


@dataclass(frozen=True, slots=True)
class _Start:
    """Where reading begins, so that every batch holds the tiles it would hold in a run that began at the top."""

    row: int
    """The first row read."""
    new_row: int
    """The first row whose tiles count; those above are done, and only fill up the first batch."""
    passed: int
    """Tiles with data of the rows above `new_row` that belong to batches of old."""


@dataclass(frozen=True, slots=True, eq=False)
class _Answered:
    """Tiles in order, and what the engine said to those it saw."""

    tiles: tuple[ReadyTile, ...]
    candidates: Candidates | None


class _Batches:
    """Gathers tiles into batches; tiles wait here for the engine's answer, which comes in order."""

    def __init__(self, tiles: Iterator[ReadyTile], *, size: int, watch: Stopwatch, start: _Start) -> None:
        self._source = tiles
        self._size = size
        self._watch = watch
        self._to_pass = start.passed
        self._tiles: list[ReadyTile] = []
        self.asked: deque[tuple[ReadyTile, ...]] = deque()
        """Tiles of each batch that was not answered yet, those without pixels between."""

    def batches(self) -> Iterator[Array]:
        """Yield the pixels of batch after batch; an engine may take the next one before it answers the last."""
        while True:
            # The engine asks while its time is counted, and waiting for tiles is none of its time.
            with self._watch.outside("infer"):
                pixels = self._gather()
            if not pixels:
                return
            yield np.stack(pixels)

    def rest(self) -> tuple[ReadyTile, ...]:
        """Return the tiles after the last batch; none of them has pixels."""
        return tuple(self._tiles)

    def _gather(self) -> list[Array]:
        """Return the pixels of the next batch, none at the end."""
        pixels: list[Array] = []
        for tile in self._source:
            if tile.pixels is not None and self._to_pass:
                self._to_pass -= 1
                continue
            self._tiles.append(tile)
            if tile.pixels is not None:
                pixels.append(tile.pixels)
            if len(pixels) == self._size:
                break
        if pixels:
            self.asked.append(tuple(self._tiles))
            self._tiles = []
        return pixels


class _Rows:
    """The finishing end: detections of tiles, gathered into rows, written down and merged."""

    def __init__(
        self, grid: TileGrid, settings: DetectionSettings, tile_px: tuple[int, int], journal: Journal | None
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._tile_px = tile_px
        self._journal = journal
        self._merge = StreamingMerge(settings.merge)
        self._tops = grid.tops
        self._next = 0
        self._record = _RowInTheMaking()
        self.columns = len(grid.lefts)
        self.watch = Stopwatch()
        self.holes: list[Hole] = []
        self.empty = 0
        self.outside = 0
        self.resumed = 0

    def resume(self, batch: int) -> _Start:
        """Take the rows that the journal holds, and return where to begin reading."""
        looked: list[int] = []
        for record in self._journal.records() if self._journal is not None else ():
            self._close_row(record)
            looked.append(record.looked)
        self.resumed = self._next = len(looked)
        # Tiles of finished rows that shared a batch with the first unfinished one.
        carried = sum(looked) % batch if self._next < len(self._tops) else 0
        row, above = self._next, 0
        while above < carried:
            row -= 1
            above += looked[row]
        return _Start(row, self._next, above - carried)

    def take(self, answered: _Answered) -> None:
        """Decode tiles, and close the rows that they complete."""
        chosen: list[TileDetections | None] = []
        if answered.candidates is not None:
            with self.watch("decode"):
                chosen = self._decoded(answered)
        answers = iter(chosen)
        for tile in answered.tiles:
            found = next(answers) if tile.pixels is not None else None
            row, column = divmod(tile.index, self.columns)
            if row < self._next:  # it only filled up a batch
                continue
            self._record.add(tile, found, tile_name(tile.index, self.columns))
            if column == self.columns - 1:
                record = self._record.finished(row)
                self._record = _RowInTheMaking()
                self._next = row + 1
                if self._journal is not None:
                    with self.watch("journal"):
                        self._journal.append(record)
                self._close_row(record)

    def finish(self, reach: Reach | None) -> TileDetections:
        """Return the objects of the scene."""
        with self.watch("merge"):
            merged = self._merge.finish()
            return merged if reach is None else merged.select(reach.holds(merged.detections.boxes))

    def _close_row(self, record: RowRecord) -> None:
        self.holes += record.holes
        self.empty += record.empty
        self.outside += record.outside
        next_row = record.row + 1
        with self.watch("merge"):
            next_top = self._tops[next_row] if next_row < len(self._tops) else self._grid.size[0]
            self._merge.add(record.found, next_top=next_top)

    def _decoded(self, answered: _Answered) -> list[TileDetections | None]:
        assert answered.candidates is not None
        size = self._grid.size
        factor = 1.0 / self._settings.scale
        windows = [(tile.index, tile.window) for tile in answered.tiles if tile.pixels is not None]
        chosen = select_detections(answered.candidates, self._settings.selection, size=self._tile_px)
        return [
            TileDetections.of_tile(
                found.scaled(factor).moved(right=float(window.left), down=float(window.top)).clipped(size),
                index,
                window=window,
                size=size,
            )
            if len(found)
            else None
            for (index, window), found in zip(windows, chosen, strict=True)
        ]


class _RowInTheMaking:
    """What the tiles of a row have given so far."""

    def __init__(self) -> None:
        self._looked = self._empty = self._outside = 0
        self._holes: list[Hole] = []
        self._found: list[TileDetections] = []

    def add(self, tile: ReadyTile, found: TileDetections | None, name: str) -> None:
        """Count a tile, and keep what was found in it."""
        if tile.problem is not None:
            self._holes.append(Hole(name, tile.window, tile.problem))
        elif tile.outside:
            self._outside += 1
        elif tile.pixels is None:
            self._empty += 1
        else:
            self._looked += 1
        if found is not None:
            self._found.append(found)

    def finished(self, row: int) -> RowRecord:
        """Return the row."""
        found = TileDetections.concatenate(self._found)
        return RowRecord(row, self._looked, self._empty, self._outside, tuple(self._holes), found)


def _shown(tiles: Iterator[ReadyTile], bar: Any, *, strict: bool) -> Iterator[ReadyTile]:
    """Yield tiles and count them on a bar; where a run is strict, one that cannot be read ends it."""
    for tile in tiles:
        if tile.problem is not None and strict:
            raise SceneError(f"{tile.problem} This run is strict, so it stops here")
        yield tile
        bar.update()


class _Silent:
    """A progress bar that nobody sees."""

    def __enter__(self) -> "_Silent":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is shown."""

    def update(self) -> None:
        """Nothing is shown."""
