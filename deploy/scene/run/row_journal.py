"""Row journal of a scene: every screened band and every finished row of tiles.

A record is an npz archive after a header with checksum and length.
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
from deploy.scene.screen.screen_layout import BandScores
from ifkd.core.detections import Detections
from ifkd.core.tiling import Window

HEADER = struct.Struct("<4sIQ")
"""Magic number, CRC-32 and length of the content."""
MAGIC, BAND_MAGIC = b"IFKR", b"IFKS"
"""First bytes of the record of a row of tiles, and of a band of the screen."""


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
    """Tiles outside the area of interest, or skipped by the screen."""
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
    """Screened bands and finished rows of one scene, in the order in which they finished; see `AppendLog`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._offsets: dict[int, int] = {}
        """Row -> offset of its record."""
        self._bands: list[BandScores] = []
        super().__init__(path, identity)

    def __len__(self) -> int:
        return len(self._offsets) + len(self._bands)

    @property
    def rows(self) -> int:
        """Number of finished rows."""
        return len(self._offsets)

    def bands(self) -> tuple[BandScores, ...]:
        """Return the scores of the screened bands."""
        return tuple(self._bands)

    def records(self) -> Iterator[RowRecord]:
        """Yield the finished rows from top to bottom."""
        for row in sorted(self._offsets):
            yield self.record(row)

    def record(self, row: int) -> RowRecord:
        """Return a finished row."""
        self._stream.seek(self._offsets[row])
        found = self._read_record()
        assert found is not None
        return RowRecord.from_bytes(found[1])

    def append(self, record: RowRecord) -> None:
        """Append a row; on return, it is on the disk.

        Raises:
            OutputError: The disk is full, or the file is not writable.
        """
        assert record.row not in self._offsets
        offset = self._end
        self._append_record(MAGIC, record.to_bytes())
        self._offsets[record.row] = offset

    def append_band(self, band: BandScores) -> None:
        """Append a screened band; on return, it is on the disk.

        Raises:
            OutputError: The disk is full, or the file is not writable.
        """
        stream = io.BytesIO()
        np.savez(stream, place=np.array([band.band, band.first_row]), scores=band.scores)
        self._append_record(BAND_MAGIC, stream.getvalue())
        self._bands.append(band)

    def _append_record(self, magic: bytes, content: bytes) -> None:
        self._append(HEADER.pack(magic, zlib.crc32(content), len(content)) + content)

    def _read_records(self) -> None:
        while (found := self._read_record()) is not None:
            magic, content = found
            if magic == MAGIC:
                self._offsets[RowRecord.from_bytes(content).row] = self._end
            else:
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    band, first_row = arrays["place"].tolist()
                    self._bands.append(BandScores(band, first_row, arrays["scores"]))
            self._end += HEADER.size + len(content)

    def _read_record(self) -> tuple[bytes, bytes] | None:
        """Return magic and content of the record at the current offset, or None if it is incomplete or damaged."""
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        magic, checksum, length = HEADER.unpack(header)
        is_known = magic in {MAGIC, BAND_MAGIC}
        content = self._stream.read(length) if is_known else b""
        is_whole = is_known and len(content) == length and zlib.crc32(content) == checksum
        return (magic, content) if is_whole else None
