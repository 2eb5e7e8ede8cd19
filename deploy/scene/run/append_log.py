"""Append-only log of a run that can be resumed. Its first line states, as JSON, what the run depends on.

Each record is flushed to the disk before `append` returns. An incomplete record at the end is removed when the log is
opened, so a log is valid wherever its process died.
"""

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ifkd.core.config import differences
from ifkd.core.errors import OutputError

L = TypeVar("L", bound="AppendLog")
RESUME_HINT = "Free disk space or change the permissions, then run the same command again to resume."


class AppendLog(ABC):
    """Log in a file, created if it is missing, of a run with an identity, as JSON. Use it as a context manager.

    Raises:
        OutputError: The file is not writable, or is the log of a run with another identity.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        self._end = 0
        try:
            # Unbuffered: data that could not be written must not stay in a buffer.
            self._stream: BinaryIO = path.open("a+b", buffering=0)
            self._open(json.loads(json.dumps(identity)))
        except OSError as error:
            raise self._not_writable(error) from error

    @abstractmethod
    def _read_records(self) -> None:
        """Read the records from `self._end`, and advance `self._end` after each complete record."""

    @abstractmethod
    def __len__(self) -> int: ...

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._stream.close()

    def __enter__(self: L) -> L:  # noqa: PYI019 - beartype cannot check Self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file, and remove it if the run failed without any record."""
        self.close()
        if kind is not None and not len(self):
            self._path.unlink(missing_ok=True)

    def _open(self, identity: dict[str, Any]) -> None:
        self._stream.seek(0)
        line = self._stream.readline()
        if not line.endswith(b"\n"):  # a new log, or an incomplete first line
            self._stream.truncate(0)
            self._write(json.dumps(identity).encode() + b"\n")
            return
        logged = json.loads(line)
        if logged != identity:
            self._stream.close()
            changes = differences(logged, identity)
            problem = f"{self._path.parent.parent} has an unfinished run with other settings: {changes}"
            hint = "Repeat the command of that run to resume it, or use --no-resume to start again."
            raise OutputError(problem, hint=hint)
        self._end = len(line)
        self._read_records()
        self._stream.truncate(self._end)

    def _append(self, content: bytes) -> None:
        try:
            self._write(content)
        except OSError as error:
            raise self._not_writable(error) from error

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._stream.write(left) :]
        os.fsync(self._stream.fileno())
        self._end += len(content)

    def _not_writable(self, error: OSError) -> OutputError:
        return OutputError(f"Cannot write {self._path} ({error.strerror or error})", hint=RESUME_HINT)
