"""Row journal of a scene: every finished row of tiles, so that an interrupted run can be resumed.

A record is a header with checksum and length, and the row as an npz archive.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.scene.merge.merge import TileDetections
from deploy.scene.result import UnreadableTile
from deploy.scene.run.append_log import AppendLog
from ifkd.core.detections import Detections
from ifkd.core.tiling import Window

HEADER = struct.Struct("<4sIQ")
"""Magic number, CRC-32 and length of the content."""
MAGIC = b"IFKR"


@dataclass(frozen=True, slots=True, eq=False)
class RowRecord:
    """Results of one row of tiles."""

    row: int
    """Index from the top."""
    processed: int
    """Tiles that passed through the engine."""
    empty: int
    """Tiles without data."""
    outside: int
    """Tiles outside the area of interest."""
    unreadable: tuple[UnreadableTile, ...]
    found: TileDetections
    """Detections of the tiles, not merged."""

    def to_bytes(self) -> bytes:
        """Return the record as an npz archive."""
        counts = {
            "row": self.row,
            "processed": self.processed,
            "empty": self.empty,
            "outside": self.outside,
            "unreadable": [asdict(tile) for tile in self.unreadable],
        }
        stream = io.BytesIO()
        np.savez(
            stream,
            counts=np.frombuffer(json.dumps(counts).encode(), np.uint8),
            boxes=self.found.detections.boxes,
            scores=self.found.detections.scores,
            labels=self.found.detections.labels,
            tiles=self.found.tiles,
            bounds=self.found.bounds,
        )
        return stream.getvalue()

    @staticmethod
    def row_of(content: bytes) -> int:
        """Return the row of a record without reading its detections."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return int(json.loads(arrays["counts"].tobytes())["row"])

    @classmethod
    def from_bytes(cls, content: bytes) -> "RowRecord":
        """Return the record of an npz archive."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            counts = json.loads(arrays["counts"].tobytes())
            found = TileDetections(
                Detections(arrays["boxes"], arrays["scores"], arrays["labels"]), arrays["tiles"], arrays["bounds"]
            )
        unreadable = tuple(
            UnreadableTile(tile["tile"], Window(**tile["window"]), tile["problem"]) for tile in counts["unreadable"]
        )
        return cls(counts["row"], counts["processed"], counts["empty"], counts["outside"], unreadable, found)


class RowJournal(AppendLog):
    """Finished rows of one scene, in the order in which they finished; see `AppendLog`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._offsets: dict[int, int] = {}
        """Row -> offset of its record."""
        super().__init__(path, identity)

    def __len__(self) -> int:
        """Return the number of finished rows."""
        return len(self._offsets)

    def records(self) -> Iterator[RowRecord]:
        """Yield the finished rows from top to bottom."""
        for row in sorted(self._offsets):
            yield self.record(row)

    def record(self, row: int) -> RowRecord:
        """Return a finished row."""
        self._stream.seek(self._offsets[row])
        content = self._read_record()
        assert content is not None
        return RowRecord.from_bytes(content)

    def append(self, record: RowRecord) -> None:
        """Append a row; on return, it is on the disk.

        Raises:
            OutputError: The disk is full, or the file is not writable.
        """
        assert record.row not in self._offsets
        offset = self._end
        content = record.to_bytes()
        self._append(HEADER.pack(MAGIC, zlib.crc32(content), len(content)) + content)
        self._offsets[record.row] = offset

    def _read_records(self) -> None:
        while (content := self._read_record()) is not None:
            self._offsets[RowRecord.row_of(content)] = self._end
            self._end += HEADER.size + len(content)

    def _read_record(self) -> bytes | None:
        """Return the content of the record at the current offset, or None if it is incomplete or damaged."""
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        magic, checksum, length = HEADER.unpack(header)
        content = self._stream.read(length) if magic == MAGIC else b""
        return content if len(content) == length and magic == MAGIC and zlib.crc32(content) == checksum else None
