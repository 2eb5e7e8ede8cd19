"""Row journal of a scene: every finished row of tiles, as an npz archive after a header with checksum and length."""

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
        numbers = {"row": self.row, "processed": self.processed, "empty": self.empty, "outside": self.outside}
        text = json.dumps({**numbers, "unreadable": [asdict(tile) for tile in self.unreadable]})
        counts = np.frombuffer(text.encode(), np.uint8)
        found, tiles, bounds = self.found.detections, self.found.tiles, self.found.bounds
        stream = io.BytesIO()
        arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "oriented": found.oriented}
        present: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
        np.savez(stream, counts=counts, tiles=tiles, bounds=bounds, **present)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "RowRecord":
        """Return the record of an npz archive."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            counts = json.loads(arrays["counts"].tobytes())
            present = {name: arrays[name] for name in ("boxes", "scores", "labels", "oriented") if name in arrays}
            detections = Detections(**present)
            found = TileDetections(detections, arrays["tiles"], arrays["bounds"])
        tiles = [UnreadableTile(**{**tile, "window": Window(**tile["window"])}) for tile in counts.pop("unreadable")]
        return cls(**counts, unreadable=tuple(tiles), found=found)


class RowJournal(AppendLog):
    """Finished rows of one scene, in the order in which they finished; see `AppendLog`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._offsets: dict[int, int] = {}
        """Row -> offset of its record."""
        super().__init__(path, identity)

    def __len__(self) -> int:
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
            self._offsets[RowRecord.from_bytes(content).row] = self._end
            self._end += HEADER.size + len(content)

    def _read_record(self) -> bytes | None:
        """Return the content of the record at the current offset, or None if it is incomplete or damaged."""
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        magic, checksum, length = HEADER.unpack(header)
        content = self._stream.read(length) if magic == MAGIC else b""
        return content if len(content) == length and magic == MAGIC and zlib.crc32(content) == checksum else None
