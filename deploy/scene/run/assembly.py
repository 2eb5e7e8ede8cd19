"""Assemble the detections of a scene from its rows of tiles, which finish in any order."""

import threading

from deploy.scene.merge.merge import TileDetections
from deploy.scene.merge.streaming_merge import StreamingMerge
from deploy.scene.read.aoi import AoiMask
from deploy.scene.result import UnreadableTile
from deploy.scene.run.prefetch import Stopwatch
from deploy.scene.run.row_journal import RowJournal, RowRecord
from deploy.scene.settings import DetectionSettings
from ifkd.core.tiling import TileGrid


class Assembly:
    """Writes finished rows to the journal, and merges them from top to bottom. Thread-safe.

    The rows of the journal count as finished. Without a journal, rows must come in order.
    """

    def __init__(self, grid: TileGrid, settings: DetectionSettings, journal: RowJournal | None) -> None:
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
            merged = self._merge.finish()
            return merged if aoi is None else merged.select(aoi.contains(merged.detections.outlines))

    def _merge_row(self, record: RowRecord) -> None:
        self.unreadable += record.unreadable
        self.empty += record.empty
        self.outside += record.outside
        self._next = record.row + 1
        with self.stopwatch("merge"):
            self._merge.add(record.found, next_top=self._edges[self._next])
