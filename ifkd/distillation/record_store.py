"""Records of one fixed size on disk, by key: memory-mapped, checksummed, safe against a kill and several writers.

A store is a folder:

    header.json    what the records depend on; a store of another header is refused, or made anew when asked
    index.bin      one entry for each record: key, slot, SHA-256 of the record, CRC-32 of the entry
    records.bin    the records, one in each slot, as float16; the file is sparse until they are written
    lock           held while anything is written

A record is written before its entry, so that a killed process leaves nothing that could be taken for a record. The
torn end of an index is cut off when the store is opened. Each process checks a record's digest when it first reads
it, and treats a damaged one as absent.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.config import differences
from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, write_json

FORMAT = 1
_ENTRY = struct.Struct("<32sQ32s")
_ENTRY_BYTES = _ENTRY.size + 4
_VALUE_BYTES = 2

_log = logging.getLogger(__name__)


class RecordStore:
    """Float16 records of one length, by 32-byte keys."""

    def __init__(
        self, folder: Path, depends_on: dict[str, Any], *, values: int, capacity: int, rebuild: bool = False
    ) -> None:
        """Open a store, or make it after stating its size.

        Args:
            folder: Where it lies; made when absent.
            depends_on: What its records depend on, as JSON values.
            values: Length of a record.
            capacity: The most records it will hold.
            rebuild: Replace a store that depends on something else, instead of refusing it.

        Raises:
            OutputError: The folder cannot be written or lacks the space, or holds a store of something else.
        """
        self.folder = make_folder(folder)
        self._header = {"format": FORMAT, "dtype": "float16", "values": values, "capacity": capacity, **depends_on}
        self._values, self._capacity = values, capacity
        self._entries: dict[bytes, tuple[int, bytes]] = {}
        self._checked: set[bytes] = set()
        self._seen_bytes = 0
        with self._writing():
            self._claim(rebuild=rebuild)
            self._repair()
        self._records = np.memmap(self._records_path, np.float16, mode="r", shape=(capacity, values))

    def __len__(self) -> int:
        """Return the number of records, as far as this process knows."""
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> list[Array | None]:
        """Return the records of `keys`, read-only views of the file; None where one is absent or damaged."""
        if any(key not in self._entries for key in keys):
            self._catch_up()
        return [self._record(key) for key in keys]

    def add(self, keys: Sequence[bytes], records: Array) -> None:
        """Keep records (float16 [n, values]); those that another process has added meanwhile are left out.

        Raises:
            OutputError: The disk is full, or more records come than the store was made for.
        """
        with self._writing():
            self._catch_up()
            entries = []
            taken = len(self._entries)
            for key, record in dict(zip(keys, records, strict=True)).items():
                if self._record(key) is not None:
                    continue
                slot = self._entries[key][0] if key in self._entries else taken
                taken += key not in self._entries
                if slot >= self._capacity:
                    raise OutputError(
                        f"The cache {self.folder} is full",
                        got=f"more than {self._capacity} distinct tiles",
                        hint="It was filled by other versions of the libraries that read images: delete the folder.",
                    )
                content = record.tobytes()
                self._write_record(content, slot)
                head = _ENTRY.pack(key, slot, hashlib.sha256(content).digest())
                entries.append(head + struct.pack("<I", zlib.crc32(head)))
            self._append(b"".join(entries))
        self._catch_up()

    @property
    def _records_path(self) -> Path:
        return self.folder / "records.bin"

    @property
    def _index_path(self) -> Path:
        return self.folder / "index.bin"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder's lock, and tell what the system says of the disk."""
        try:
            with (self.folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise OutputError(
                f"The cache {self.folder} cannot be written ({error.strerror or error})",
                hint="Free space, choose another place, or train without the cache.",
            ) from error

    def _claim(self, *, rebuild: bool) -> None:
        """Find this very store in the folder, or make it."""
        path = self.folder / "header.json"
        if path.is_file():
            different = _differences(path, self._header)
            if not different:
                return
            if not rebuild:
                raise OutputError(
                    f"The cache {self.folder} was made of something else: {different}",
                    hint="Set distillation.rebuild_cache = true to make it anew, or delete the folder.",
                )
            for old in (path, self._index_path, self._records_path):
                old.unlink(missing_ok=True)
        needed = self._capacity * self._values * _VALUE_BYTES
        free = shutil.disk_usage(self.folder).free
        size = f"{self._capacity:,} tiles x {self._values * _VALUE_BYTES:,} bytes = {_readable(needed)}"
        if needed > free:
            raise OutputError(
                f"The cache {self.folder} does not fit its disk",
                got=f"{_readable(free)} free",
                expected=size,
                hint="Free space, or train without the cache.",
            )
        _log.warning("The cache %s will take up to %s.", self.folder, size)
        self._index_path.write_bytes(b"")
        self._records_path.write_bytes(b"")
        write_json(path, self._header)

    def _repair(self) -> None:
        """Cut a torn entry off the index, and give the file of records its full, sparse length."""
        self._index_path.touch()
        self._catch_up()
        os.truncate(self._index_path, self._seen_bytes)
        self._records_path.touch()
        whole = self._capacity * self._values * _VALUE_BYTES
        if self._records_path.stat().st_size != whole:
            os.truncate(self._records_path, whole)

    def _catch_up(self) -> None:
        """Read the entries that were added since the last look, up to the first that is not whole."""
        if self._index_path.stat().st_size - self._seen_bytes < _ENTRY_BYTES:
            return
        with self._index_path.open("rb") as stream:
            stream.seek(self._seen_bytes)
            content = stream.read()
        for start in range(0, len(content) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
            head = content[start : start + _ENTRY.size]
            (check,) = struct.unpack_from("<I", content, start + _ENTRY.size)
            if zlib.crc32(head) != check:
                return
            key, slot, digest = _ENTRY.unpack(head)
            self._entries[key] = (slot, digest)
            self._seen_bytes += _ENTRY_BYTES

    def _record(self, key: bytes) -> Array | None:
        if key not in self._entries:
            return None
        slot, digest = self._entries[key]
        record: Array = self._records[slot]
        if key not in self._checked:
            if hashlib.sha256(record.tobytes()).digest() != digest:
                return None
            self._checked.add(key)
        return record

    def _write_record(self, content: bytes, slot: int) -> None:
        with self._records_path.open("r+b", buffering=0) as stream:
            stream.seek(slot * len(content))
            rest = memoryview(content)
            while rest:
                rest = rest[stream.write(rest) :]

    def _append(self, entries: bytes) -> None:
        """Append whole entries in one write, after cutting off what an interrupted one may have left."""
        if entries:
            os.truncate(self._index_path, self._seen_bytes)
            with self._index_path.open("ab", buffering=0) as stream:
                stream.write(entries)


def _differences(path: Path, wanted: dict[str, Any]) -> str:
    """Return in words where the header at `path` differs from the wanted one; empty when it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "its header cannot be read"
    if not isinstance(found, dict):
        return "its header cannot be read"
    return differences(found, json.loads(json.dumps(wanted)))


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
