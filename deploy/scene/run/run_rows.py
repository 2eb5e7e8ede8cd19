"""Run rows of tiles through an engine: prefetch tiles, infer in batches, decode in the background.

    reader thread:  rows of the scene -> resized to the engine's pixels -> tiles -> bounded queue
    calling thread: queue -> batches (across rows) -> engine, one batch ahead on a GPU -> bounded queue
    decoder thread: queue -> detections of tiles -> finished rows

Memory contains the queues and one row of tiles, so it grows with the width of the scene.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deploy.engines.engine import Engine
from deploy.scene.merge.merge import TileDetections
from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.result import UnreadableTile, tile_name
from deploy.scene.run.prefetch import BackgroundWorker, PreparedTile, Stopwatch, TilePrefetcher
from deploy.scene.run.row_journal import RowRecord
from deploy.scene.run.row_ranges import RowRange, rows_per_range
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import SceneError
from ifkd.core.postprocess import postprocess
from ifkd.core.tiling import TileGrid

PREFETCHED_BATCHES = 2
QUEUED_OUTPUTS = 2


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """Tiles and settings for running rows of a scene."""

    grid: TileGrid
    """Tiles, scene pixels."""
    tile_px: tuple[int, int]
    """(height, width) of a tile, engine pixels."""
    settings: DetectionSettings
    batch: int
    """Tiles per inference."""
    selected: Array | None
    """bool [tiles]: tiles to process, those in the area of interest that the screen does not skip; None for all."""

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return len(self.grid.lefts)


def run_rows(
    engine: Engine,
    scene: Scene,
    plan: RowPlan,
    row_range: RowRange,
    *,
    put: Callable[[RowRecord], None],
    step: Callable[[], object] = lambda: None,
    engine_lock: AbstractContextManager[Any] | None = None,
) -> dict[str, float]:
    """Run a row range, and return the seconds by stage.

    `put` receives each finished row, in order, in the decoder thread; `step` is called after each tile was read; and
    `engine_lock` is held while the engine is used: prefetching starts before it is acquired.

    Raises:
        SceneError: A part of the scene is unreadable, and the run is strict.
    """
    stopwatch, decoder = Stopwatch(), _RowDecoder(plan, row_range, put)
    first, stop = row_range.read_row, row_range.stop_row
    rows = partial(read_tiles, scene, plan.grid, first_row=first, stop_row=stop, selected=plan.selected)
    with (
        TilePrefetcher(
            lambda resizing: rows(tile_px=plan.tile_px, resizing=resizing), depth=PREFETCHED_BATCHES * plan.batch
        ) as tiles,
        BackgroundWorker(decoder.add, depth=QUEUED_OUTPUTS) as background,
        ExitStack() as stack,
    ):
        with stopwatch("wait"):
            stack.enter_context(engine_lock or nullcontext())
        checked = _checked(stopwatch.waits(iter(tiles)), step, strict=plan.settings.strict)
        batcher = _Batcher(checked, plan=plan, stopwatch=stopwatch, skip_tiles=row_range.skip_tiles)
        for candidates in stopwatch.waits(engine.infer_each(batcher.batches()), "infer"):
            background.put(_BatchOutput(batcher.pending.popleft(), candidates))
        background.put(_BatchOutput(batcher.remaining(), None))
    return {**tiles.stopwatch.seconds, **stopwatch.seconds, **decoder.stopwatch.seconds}


@dataclass(frozen=True, slots=True, eq=False)
class _BatchOutput:
    """Consecutive tiles, and the candidates of those with pixels."""

    tiles: tuple[PreparedTile, ...]
    candidates: Candidates | None


class _Batcher:
    """Collects tiles into batches."""

    def __init__(self, tiles: Iterator[PreparedTile], *, plan: RowPlan, stopwatch: Stopwatch, skip_tiles: int) -> None:
        self._source = tiles
        self._size = plan.batch
        self._range_tiles = plan.columns * rows_per_range(plan.columns, plan.batch)
        self._stopwatch = stopwatch
        self._skip_tiles = skip_tiles
        self._tiles: list[PreparedTile] = []
        self.pending: deque[tuple[PreparedTile, ...]] = deque()
        """Tiles of each batch without output yet, including tiles without pixels between them."""

    def batches(self) -> Iterator[Array]:
        """Yield the pixels of each batch."""
        while True:
            # The engine fetches the batch within the stage "infer", which must not count the wait for tiles.
            with self._stopwatch.excluded("infer"):
                pixels = self._collect()
            if not pixels:
                return
            yield np.stack(pixels)

    def remaining(self) -> tuple[PreparedTile, ...]:
        """Return the tiles after the last batch; none of them has pixels."""
        return tuple(self._tiles)

    def _collect(self) -> list[Array]:
        """Return the pixels of the next batch; an empty list at the end."""
        pixels: list[Array] = []
        for tile in self._source:
            if tile.pixels is not None and self._skip_tiles:
                self._skip_tiles -= 1
                continue
            self._tiles.append(tile)
            if tile.pixels is not None:
                pixels.append(tile.pixels)
            ends_range = (tile.index + 1) % self._range_tiles == 0
            if len(pixels) == self._size or (pixels and ends_range):
                break
        if pixels:
            self.pending.append(tuple(self._tiles))
            self._tiles = []
        return pixels


class _RowDecoder:
    """Decodes candidates into detections, collects them by row, and passes finished rows on."""

    def __init__(self, plan: RowPlan, row_range: RowRange, put: Callable[[RowRecord], None]) -> None:
        self._plan = plan
        self._put = put
        self.stopwatch = Stopwatch()
        self._begin(row_range.first_row)

    def _begin(self, row: int) -> None:
        self._row = row
        self._processed = self._outside = 0
        self._unreadable: list[UnreadableTile] = []
        self._found: list[TileDetections] = []

    def add(self, output: _BatchOutput) -> None:
        """Decode a batch, and pass on the rows that it completes."""
        found: dict[int, TileDetections] = {}
        if output.candidates is not None:
            with self.stopwatch("decode"):
                found = self._decode(output.candidates, [tile for tile in output.tiles if tile.pixels is not None])
        for tile in output.tiles:
            if tile.index // self._plan.columns >= self._row:  # others only completed a batch
                self._add_tile(tile, found.get(tile.index))

    def _add_tile(self, tile: PreparedTile, found: TileDetections | None) -> None:
        columns = self._plan.columns
        self._outside += tile.outside
        if tile.problem is not None:
            self._unreadable.append(UnreadableTile(tile_name(tile.index, columns), tile.window, tile.problem))
        if found is not None:
            self._processed += 1
            self._found.append(found)
        if (tile.index + 1) % columns == 0:
            empty = columns - self._processed - self._outside - len(self._unreadable)
            all_found = TileDetections.concatenate(self._found)
            record = RowRecord(self._row, self._processed, empty, self._outside, tuple(self._unreadable), all_found)
            self._begin(self._row + 1)
            self._put(record)

    def _decode(self, candidates: Candidates, tiles: Sequence[PreparedTile]) -> dict[int, TileDetections]:
        """Return the detections of each tile by its index."""
        grid, tile_px, decoded = self._plan.grid, self._plan.tile_px, {}
        size = grid.size
        detections = postprocess(candidates, self._plan.settings.postprocess, size=tile_px)
        for tile, found in zip(tiles, detections, strict=True):
            resized = found.resized(tile_px, grid.tile_px)
            moved = resized.translated(dx=float(tile.window.left), dy=float(tile.window.top))
            decoded[tile.index] = TileDetections.of_tile(moved.clipped(size), tile.index, window=tile.window, size=size)
        return decoded


def _checked(tiles: Iterator[PreparedTile], step: Callable[[], object], *, strict: bool) -> Iterator[PreparedTile]:
    """Yield tiles, and call `step` after each; in a strict run, raise at an unreadable tile."""
    for tile in tiles:
        if tile.problem is not None and strict:
            raise SceneError(f"{tile.problem} The run stops here because of --strict")
        yield tile
        step()
