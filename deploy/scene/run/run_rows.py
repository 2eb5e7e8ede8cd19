"""The search of rows of tiles: read ahead, infer in batches, decode behind; row by row it says what was found.

    reading thread:   rows of the scene ─► tiles ─► scaled to the engine ─► bounded queue
    calling thread:   queue ─► batches (across rows, within a band) ─► engine, one batch ahead on a GPU ─► bounded queue
    finishing thread: queue ─► detections of tiles ─► finished row

Only the queues and one band of rows are held, so memory follows the width of the scene.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.engines.engine import Engine
from deploy.scene.merge.merge import TileDetections
from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from deploy.scene.result import UnreadableTile, tile_name
from deploy.scene.run.prefetch import Background, ReadAhead, ReadyTile, Stopwatch
from deploy.scene.run.row_journal import RowRecord
from deploy.scene.run.row_ranges import RowRange, rows_per_range
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import SceneError
from ifkd.core.postprocess import postprocess
from ifkd.core.tiling import TileGrid

BATCHES_AHEAD = 2
BATCHES_BEHIND = 2


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """How a scene is searched, wherever its rows are looked at."""

    grid: TileGrid
    """Its tiles, in scene pixels."""
    tile_px: tuple[int, int]
    """(height, width) of a tile, pixels of the engine."""
    settings: DetectionSettings
    batch: int
    """Tiles per call of the engine."""
    wanted: Array | None
    """bool [tiles]: those to look at; None: all."""

    @property
    def columns(self) -> int:
        """Tiles in a row."""
        return len(self.grid.lefts)


def run_rows(
    engine: Engine,
    scene: Scene,
    plan: RowPlan,
    stretch: RowRange,
    *,
    take: Callable[[RowRecord], None],
    step: Callable[[], object] = lambda: None,
    turn: AbstractContextManager[Any] | None = None,
) -> dict[str, float]:
    """Look at rows of a scene, hand each over in order, and return the seconds by stage.

    Args:
        engine: Answers tiles.
        scene: What to look at.
        plan: How.
        stretch: Which rows.
        take: Gets each row, in a thread of its own.
        step: Called for every tile that was read.
        turn: Entered while the engine is used; tiles are read before it is free.

    Raises:
        SceneError: A part cannot be read, and the search is strict.
    """
    watch = Stopwatch()
    rows = _Rows(plan, stretch, take)
    reads = read_tiles(scene, plan.grid, first_row=stretch.row, stop_row=stretch.stop_row, wanted=plan.wanted)
    with (
        ReadAhead(reads, plan.tile_px, depth=BATCHES_AHEAD * plan.batch) as tiles,
        Background(rows.take, depth=BATCHES_BEHIND) as behind,
        watch.entering(turn or nullcontext(), "wait"),
    ):
        shown = _shown(watch.waits(tiles), step, strict=plan.settings.strict)
        look = _Batches(shown, plan=plan, watch=watch, passed=stretch.passed)
        for candidates in watch.waits(engine.infer_each(look.batches()), "infer"):
            behind.put(_RowResults(look.asked.popleft(), candidates))
        behind.put(_RowResults(look.rest(), None))
        seconds = tiles.seconds
    return {**seconds, **watch.seconds, **rows.watch.seconds}


@dataclass(frozen=True, slots=True, eq=False)
class _RowResults:
    """Tiles in order, and what the engine said to those it saw."""

    tiles: tuple[ReadyTile, ...]
    candidates: Candidates | None


class _Batches:
    """Gathers tiles into batches; tiles wait here for the engine's answer, which comes in order."""

    def __init__(self, tiles: Iterator[ReadyTile], *, plan: RowPlan, watch: Stopwatch, passed: int) -> None:
        self._source = tiles
        self._size = plan.batch
        self._band_tiles = plan.columns * rows_per_range(plan.columns, plan.batch)
        self._watch = watch
        self._to_pass = passed
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
            ends_band = (tile.index + 1) % self._band_tiles == 0
            if len(pixels) == self._size or (pixels and ends_band):
                break
        if pixels:
            self.asked.append(tuple(self._tiles))
            self._tiles = []
        return pixels


class _Rows:
    """The finishing end: detections of tiles, gathered into rows and handed over."""

    def __init__(self, plan: RowPlan, stretch: RowRange, take: Callable[[RowRecord], None]) -> None:
        self._plan = plan
        self._hand_over = take
        self._next = stretch.new_row
        self._record = _RowInTheMaking()
        self.watch = Stopwatch()

    def take(self, answered: _RowResults) -> None:
        """Decode tiles, and hand over the rows that they complete."""
        chosen: list[TileDetections | None] = []
        if answered.candidates is not None:
            with self.watch("decode"):
                chosen = self._decoded(answered)
        answers = iter(chosen)
        columns = self._plan.columns
        for tile in answered.tiles:
            found = next(answers) if tile.pixels is not None else None
            row, column = divmod(tile.index, columns)
            if row < self._next:  # it only filled up a batch
                continue
            self._record.add(tile, found, tile_name(tile.index, columns))
            if column == columns - 1:
                record = self._record.finished(row)
                self._record = _RowInTheMaking()
                self._next = row + 1
                self._hand_over(record)

    def _decoded(self, answered: _RowResults) -> list[TileDetections | None]:
        assert answered.candidates is not None
        size, settings = self._plan.grid.size, self._plan.settings
        factor = 1.0 / settings.scale
        windows = [(tile.index, tile.window) for tile in answered.tiles if tile.pixels is not None]
        chosen = postprocess(answered.candidates, settings.selection, size=self._plan.tile_px)
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
        self._holes: list[UnreadableTile] = []
        self._found: list[TileDetections] = []

    def add(self, tile: ReadyTile, found: TileDetections | None, name: str) -> None:
        """Count a tile, and keep what was found in it."""
        if tile.problem is not None:
            self._holes.append(UnreadableTile(name, tile.window, tile.problem))
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


def _shown(tiles: Iterator[ReadyTile], step: Callable[[], object], *, strict: bool) -> Iterator[ReadyTile]:
    """Yield tiles and tell of each; where a run is strict, one that cannot be read ends it."""
    for tile in tiles:
        if tile.problem is not None and strict:
            raise SceneError(f"{tile.problem} This run is strict, so it stops here")
        yield tile
        step()
