"""Store of fixed-size records on disk: memory-mapped, checksummed, and safe with several writers and after a kill.

A store is a folder:

    header.json    what the records depend on; a store with another header is refused, or replaced with `rebuild`
    index.bin      one entry for each record: key, slot, SHA-256 of the record, CRC-32 of the entry
    records.bin    the records as float16, one in each slot; the file is sparse until they are written
    lock           locked during writes

A record is written before its entry, so that a killed process leaves no incomplete record in the index. An incomplete
entry at the end of the index is removed when the store is opened. Each process checks a record's digest when it first
reads it, and treats a damaged record as missing.
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

from ifkd.core.config import differences
from ifkd.core.detections import Array
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
        """Open a store of up to `capacity` records of `values` numbers, or create it and log its size.

        `depends_on` has JSON values; with `rebuild`, a store that depends on others is replaced, not refused.

        Raises:
            OutputError: The folder cannot be written, the disk is too small, or the store has another header.
        """
        self.folder = make_folder(folder)
        self._index_path, self._records_path = folder / "index.bin", folder / "records.bin"
        self._header = {"format": FORMAT, "dtype": "float16", "values": values, "capacity": capacity, **depends_on}
        self._values, self._capacity = values, capacity
        self._entries: dict[bytes, tuple[int, bytes]] = {}
        self._checked: set[bytes] = set()
        self._seen_bytes = 0
        with self._locked():
            self._open_or_create(rebuild=rebuild)
            self._repair()
            self._records = np.memmap(self._records_path, np.float16, mode="r", shape=(capacity, values))
            self._inode = self._records_path.stat().st_ino  # of no other file while it is mapped

    def __len__(self) -> int:
        """Return the number of records that this process has seen."""
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> list[Array | None]:
        """Return the records of `keys` as read-only views of the file; None for a missing or damaged one."""
        if any(key not in self._entries for key in keys):
            self._read_new_entries()
        return [self._record(key) for key in keys]

    def add(self, keys: Sequence[bytes], records: Array) -> None:
        """Add records (float16 [n, values]), except those that another process has already added.

        Raises:
            OutputError: The disk or the store is full, or another run has replaced the store.
        """
        with self._locked():
            if self._records_path.stat().st_ino != self._inode:
                hint = "Give runs with other networks or images, at the same time, folders with other parents."
                raise OutputError(f"Another run has replaced the cache {self.folder}", hint=hint)
            self._read_new_entries()
            entries = []
            used = len(self._entries)
            for key, record in dict(zip(keys, records, strict=True)).items():
                if self._record(key) is not None:
                    continue
                slot = self._entries[key][0] if key in self._entries else used
                used += key not in self._entries
                if slot >= self._capacity:
                    got = f"more than {self._capacity} distinct tiles"
                    hint = "Delete the folder; it was filled with other versions of the libraries that read images."
                    raise OutputError(f"The cache {self.folder} is full", got=got, hint=hint)
                content = record.tobytes()
                self._write_record(content, slot)
                head = _ENTRY.pack(key, slot, hashlib.sha256(content).digest())
                entries.append(head + struct.pack("<I", zlib.crc32(head)))
            self._append(b"".join(entries))
        self._read_new_entries()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, and report errors of the file system as OutputError."""
        try:
            with (self.folder / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            problem = f"The cache {self.folder} cannot be written ({error.strerror or error})"
            hint = "Free disk space, choose another folder, or train without the cache."
            raise OutputError(problem, hint=hint) from error

    def _open_or_create(self, *, rebuild: bool) -> None:
        """Check the header of an existing store, or create the store."""
        path = self.folder / "header.json"
        if path.is_file():
            different = _differences(path, self._header)
            if not different:
                return
            if not rebuild:
                problem = f"The cache {self.folder} depends on other networks or images: {different}"
                hint = "Set distillation.rebuild_cache = true to replace it, or delete the folder."
                raise OutputError(problem, hint=hint)
            for old in (path, self._index_path, self._records_path):
                old.unlink(missing_ok=True)
        needed = self._capacity * self._values * _VALUE_BYTES
        free = shutil.disk_usage(self.folder).free
        size = f"{self._capacity:,} tiles x {self._values * _VALUE_BYTES:,} bytes = {_format_bytes(needed)}"
        if needed > free:
            problem = f"The cache {self.folder} is too large for its disk"
            hint = "Free disk space, or train without the cache."
            raise OutputError(problem, got=f"{_format_bytes(free)} free", expected=size, hint=hint)
        _log.warning("The cache %s will use up to %s.", self.folder, size)
        self._index_path.write_bytes(b"")
        self._records_path.write_bytes(b"")
        write_json(path, self._header)

    def _repair(self) -> None:
        """Remove an incomplete entry from the index, and extend the sparse file of records to its full length."""
        self._index_path.touch()
        self._read_new_entries()
        os.truncate(self._index_path, self._seen_bytes)
        self._records_path.touch()
        size = self._capacity * self._values * _VALUE_BYTES
        if self._records_path.stat().st_size != size:
            os.truncate(self._records_path, size)

    def _read_new_entries(self) -> None:
        """Read entries that were added since the last call, up to the first incomplete one."""
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
        with self._records_path.open("r+b") as stream:
            stream.seek(slot * len(content))
            stream.write(content)

    def _append(self, entries: bytes) -> None:
        """Append entries in one write, after removing what an interrupted write may have left."""
        if entries:
            os.truncate(self._index_path, self._seen_bytes)
            with self._index_path.open("ab", buffering=0) as stream:
                stream.write(entries)


def _differences(path: Path, header: dict[str, Any]) -> str:
    """Return a description of the differences of the header at `path` from `header`; empty if there are none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return "its header cannot be read"
    return differences(found, json.loads(json.dumps(header)))


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
