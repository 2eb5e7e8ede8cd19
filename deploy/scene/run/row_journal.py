"""The journal of a run: every finished row of tiles, so that a run that was cut off goes on where it was.

The first line says, as JSON, what the run depends on. Each record after it is a row of tiles: a header with its
length and checksum, then its content. A record is on the disk before the next row begins; one that was cut off is
cut away, so a journal ends after a whole row wherever its process died.
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deploy.scene.merge.merge import TileDetections
from deploy.scene.result import UnreadableTile
from ifkd.core.detections import Detections
from ifkd.core.errors import OutputError
from ifkd.core.tiling import Window

HEADER = struct.Struct("<4sIQ")
"""Mark, CRC-32 and length of what follows."""
MARK = b"IFKR"
ANEW = "Give the same command again to go on, or --no-resume to begin anew."


@dataclass(frozen=True, slots=True, eq=False)
class RowRecord:
    """What a row of tiles gave."""

    row: int
    """Counted from the top, from 0."""
    looked: int
    """Tiles that the engine saw."""
    empty: int
    """Tiles without data."""
    outside: int
    """Tiles outside the area of interest."""
    holes: tuple[UnreadableTile, ...]
    found: TileDetections

    def to_bytes(self) -> bytes:
        """Return the record as it lies on disk."""
        facts = {
            "row": self.row,
            "looked": self.looked,
            "empty": self.empty,
            "outside": self.outside,
            "holes": [asdict(hole) for hole in self.holes],
        }
        stream = io.BytesIO()
        np.savez(
            stream,
            facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            boxes=self.found.detections.boxes,
            scores=self.found.detections.scores,
            labels=self.found.detections.labels,
            tiles=self.found.tiles,
            bounds=self.found.bounds,
        )
        return stream.getvalue()

    @staticmethod
    def row_of(content: bytes) -> int:
        """Return the row that a record is of."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return int(json.loads(arrays["facts"].tobytes())["row"])

    @classmethod
    def from_bytes(cls, content: bytes) -> "RowRecord":
        """Return the record that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            found = TileDetections(
                Detections(arrays["boxes"], arrays["scores"], arrays["labels"]), arrays["tiles"], arrays["bounds"]
            )
        holes = tuple(
            UnreadableTile(hole["tile"], Window(**hole["window"]), hole["problem"]) for hole in facts["holes"]
        )
        return cls(facts["row"], facts["looked"], facts["empty"], facts["outside"], holes, found)


class RowJournal:
    """The journal of one run, open for going on. Use it in a `with`, or `close` it.

    Args:
        path: Where it lies, or will.
        identity: What the run depends on, as JSON. A journal of another identity is refused with the difference.

    Raises:
        OutputError: It cannot be written, or belongs to a run with other settings.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        identity = json.loads(json.dumps(identity))
        self._end = 0
        self._places: dict[int, int] = {}  # where each row's record begins
        try:
            self._stream = path.open("a+b", buffering=0)  # what could not be written must not wait in a buffer
            self._open(identity)
        except OSError as error:
            raise self._unwritable(error) from error

    def __len__(self) -> int:
        """Return the number of finished rows."""
        return len(self._places)

    def records(self) -> Iterator[RowRecord]:
        """Yield the finished rows from the top, one at a time."""
        for row in sorted(self._places):
            yield self.record(row)

    def record(self, row: int) -> RowRecord:
        """Return a finished row."""
        self._stream.seek(self._places[row])
        content = self._read_record()
        assert content is not None
        return RowRecord.from_bytes(content)

    def append(self, record: RowRecord) -> None:
        """Write a row down, in whatever order rows are finished; when this returns, it is on the disk.

        Raises:
            OutputError: There is no room.
        """
        assert record.row not in self._places
        place = self._end
        content = record.to_bytes()
        try:
            self._write(HEADER.pack(MARK, zlib.crc32(content), len(content)) + content)
        except OSError as error:
            raise self._unwritable(error) from error
        self._places[record.row] = place

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._stream.close()

    def __enter__(self) -> "RowJournal":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; a run that failed before its first row leaves none."""
        self.close()
        if kind is not None and not self._places:
            self._path.unlink(missing_ok=True)

    def _open(self, identity: dict[str, Any]) -> None:
        self._stream.seek(0)
        line = self._stream.readline()
        if not line.endswith(b"\n"):  # new, or cut off in its first line
            self._stream.truncate(0)
            self._write(json.dumps(identity).encode() + b"\n")
            return
        there = json.loads(line)
        if there != identity:
            self._stream.close()
            differences = describe_difference(there, identity)
            raise OutputError(
                f"{self._path.parent.parent} holds an unfinished run that differs from this one: {differences}",
                hint=ANEW.replace("the same command again", "the command of that run"),
            )
        self._end = self._stream.tell()
        while (content := self._read_record()) is not None:
            self._places[RowRecord.row_of(content)] = self._end
            self._end = self._stream.tell()
        self._stream.truncate(self._end)

    def _read_record(self) -> bytes | None:
        """Return the content of the record at the present position, or None where there is no whole one."""
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        mark, checksum, length = HEADER.unpack(header)
        content = self._stream.read(length) if mark == MARK else b""
        return content if len(content) == length and mark == MARK and zlib.crc32(content) == checksum else None

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._stream.write(left) :]
        os.fsync(self._stream.fileno())
        self._end += len(content)

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"Cannot write {self._path} ({error.strerror or error})",
            hint="Free space and rights, then give the same command again: it goes on where it stopped.",
        )


def describe_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Return what differs between two identities, as `name: value there, value here`."""
    old, new = _flat(there), _flat(here)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return "; ".join(f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}" for name in names)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
