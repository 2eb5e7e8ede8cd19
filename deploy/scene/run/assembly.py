"""A scene's objects, put together from its rows of tiles in whatever order these are finished."""

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
    """Writes finished rows down and merges them from the top. Any thread may hand rows over.

    Args:
        grid: The tiles of the scene.
        settings: How they are brought together.
        journal: Where rows are written down; those it holds count as handed over. Without one, rows must come in order,
            as those that come early wait in it.
    """

    def __init__(self, grid: TileGrid, settings: DetectionSettings, journal: RowJournal | None) -> None:
        self._grid = grid
        self._tops = grid.tops
        self._journal = journal
        self._merge = StreamingMerge(settings.merge)
        self._next = 0
        self._lock = threading.Lock()
        self.watch = Stopwatch()
        self.holes: list[UnreadableTile] = []
        self.empty = 0
        self.outside = 0
        self.looked: dict[int, int] = {}
        """Tiles that the engine saw, by finished row."""
        for record in journal.records() if journal is not None else ():
            self.looked[record.row] = record.looked
            if record.row == self._next:
                self._close(record)
        self.resumed = len(self.looked)
        """Rows that an earlier run had finished."""

    def put(self, record: RowRecord) -> None:
        """Take a finished row; when this returns, it is in the journal."""
        with self._lock:
            if self._journal is not None:
                with self.watch("journal"):
                    self._journal.append(record)
            self.looked[record.row] = record.looked
            if record.row != self._next:
                assert self._journal is not None
                return
            self._close(record)
            while self._next in self.looked:
                assert self._journal is not None
                self._close(self._journal.record(self._next))

    def finish(self, reach: AoiMask | None) -> TileDetections:
        """Return the objects of the scene, of which every row was handed over."""
        assert self._next == len(self._tops)
        with self.watch("merge"):
            merged = self._merge.finish()
            return merged if reach is None else merged.select(reach.holds(merged.detections.boxes))

    def _close(self, record: RowRecord) -> None:
        self.holes += record.holes
        self.empty += record.empty
        self.outside += record.outside
        self._next = record.row + 1
        with self.watch("merge"):
            next_top = self._tops[self._next] if self._next < len(self._tops) else self._grid.size[0]
            self._merge.add(record.found, next_top=next_top)
