"""Assemble the detections of a scene from its rows of tiles, which finish in any order."""

import threading

import numpy as np

from deploy.scene.merge.merge import TileDetections
from deploy.scene.merge.streaming_merge import StreamingMerge
from deploy.scene.read.aoi import AoiMask
from deploy.scene.result import UnreadableTile
from deploy.scene.run.prefetch import Stopwatch
from deploy.scene.run.row_journal import RowJournal, RowRecord
from deploy.scene.screen.audit import LeftOut
from deploy.scene.screen.tile_selection import TileSelection
from deploy.scene.settings import DetectionSettings
from ifkd.core.detections import Array
from ifkd.core.tiling import TileGrid


class Assembly:
    """Writes finished rows to the journal, and merges them from top to bottom. Thread-safe.

    The rows of the journal count as finished. Without a journal, rows must come in order. Detections of tiles that the
    `selection` skips, and that are searched to estimate the loss, are kept apart.
    """

    def __init__(
        self,
        grid: TileGrid,
        settings: DetectionSettings,
        journal: RowJournal | None,
        selection: TileSelection | None = None,
    ) -> None:
        self._grid, self._selection = grid, selection
        self._audited: list[TileDetections] = []
        self._edges = [*grid.tops, grid.size[0]]
        """First row of pixels of each row of tiles; and the end of the scene."""
        self._journal = journal
        self._merge = StreamingMerge(settings.merge)
        self._next = 0
        self._lock = threading.Lock()
        self.stopwatch = Stopwatch()
        self.unreadable: list[UnreadableTile] = []
        self.empty = self.outside = 0
        self.processed: dict[int, int] = {}
        """Finished row -> number of its tiles that passed through the engine."""
        for record in journal.records() if journal is not None else ():
            self.processed[record.row] = record.processed
            if record.row == self._next:
                self._merge_row(record)
        self.resumed = len(self.processed)
        """Rows that an earlier run had finished."""

    def put(self, record: RowRecord) -> None:
        """Add a finished row; on return, it is in the journal."""
        with self._lock:
            if self._journal is not None:
                with self.stopwatch("journal"):
                    self._journal.append(record)
            self.processed[record.row] = record.processed
            assert self._journal is not None or record.row == self._next
            if record.row == self._next:
                self._merge_row(record)
            while self._journal is not None and self._next in self.processed:
                self._merge_row(self._journal.record(self._next))

    def finish(self, aoi: AoiMask | None) -> TileDetections:
        """Return the merged detections after all rows are finished; with an area of interest, only those inside."""
        assert self._next == len(self._edges) - 1
        with self.stopwatch("merge"):
            return _inside(self._merge.finish(), aoi)

    def left_out(self, aoi: AoiMask | None) -> LeftOut:
        """Return what is not in the result because of the screen, after all rows are finished."""
        return LeftOut(_inside(self._merge.left_out(), aoi), _inside(TileDetections.concatenate(self._audited), aoi))

    def _merge_row(self, record: RowRecord) -> None:
        self.unreadable += record.unreadable
        self.empty += record.empty
        self.outside += record.outside
        self._next = record.row + 1
        found, skipped = record.found, None
        if self._selection is not None:
            is_audited = self._selection.audited[found.tiles]
            self._audited.append(found.select(is_audited))
            found, skipped = found.select(~is_audited), self._skipped_boxes(record.row)
        with self.stopwatch("merge"):
            self._merge.add(found, next_top=self._edges[self._next], skipped=skipped)

    def _skipped_boxes(self, row: int) -> Array:
        """Return the skipped tiles of a row as boxes, float64 [k, 4]."""
        grid, columns = self._grid, len(self._grid.lefts)
        assert self._selection is not None
        lefts = np.array(grid.lefts, np.float64)[self._selection.skipped[row * columns : (row + 1) * columns]]
        tops = np.full(len(lefts), float(self._edges[row]))
        return np.stack([lefts, tops, lefts + grid.tile_px[1], tops + grid.tile_px[0]], axis=1)


def _inside(found: TileDetections, aoi: AoiMask | None) -> TileDetections:
    return found if aoi is None else found.select(aoi.contains(found.detections.outlines))
