"""Files that are whole or absent: atomic writes and digests."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ifkd.core.errors import OutputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    Readers see the old file or the new one, never a part. When the block raises, nothing is left behind.

    Raises:
        OutputError: The folder cannot be made or written.
    """
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise _unwritable(folder, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def clear_halves(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it; nobody else may be writing it."""
    for half in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        half.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Make `folder` and its parents, and return it.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def put_in_place(made: Path, place: Path) -> None:
    """Let the folder `made`, on the same file system, take the place of whatever is at `place`, as a whole.

    Of two processes that end at once, the second replaces the first as a whole.
    """
    retired = Path(tempfile.mkdtemp(dir=made.parent, prefix=f"{made.name}.old."))
    handle = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if place.exists():
            place.replace(retired / place.name)
        made.replace(place)
    finally:
        os.close(handle)
    shutil.rmtree(retired)


@contextmanager
def sole_user(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the block, so that no other process works in its folder meanwhile.

    The system gives the lock back when the process ends, however it does; the file is removed when the block ends.

    Raises:
        OutputError: Another process holds it, or the folder cannot be written.
    """
    handle = take_lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def take_lock(path: Path, *, folder: Path | None = None) -> int:
    """Return the descriptor of the lock file `path`, held until it is closed.

    Args:
        path: The lock file.
        folder: The folder that is locked, as the user knows it; by default that of the file.

    Raises:
        OutputError: Another process holds it, or the folder cannot be written.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = path.exists() and path.stat().st_ino == os.fstat(handle).st_ino
        if held:
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
    except BlockingIOError:
        held = False
    except OSError as error:
        os.close(handle)
        raise _unwritable(path.parent, error) from error
    if not held:  # or who held it has just ended and taken it away
        holder = os.pread(handle, 32, 0).decode(errors="replace") or "unknown"
        os.close(handle)
        raise OutputError(
            f"Another run (process {holder}) is writing into {folder or path.parent}",
            hint="Wait for its end, or choose another folder with --out.",
        )
    return handle


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused, as JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {path} ({error.strerror or error})",
        hint="Choose another place, or free space and rights.",
    )
