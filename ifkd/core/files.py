"""Write files and folders atomically, lock files and compute digests."""

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
    """Yield a temporary file that replaces `path` at once when the block ends without an exception.

    Raises:
        OutputError: The folder or the file is not writable.
    """
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise not_writable(folder, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(path: Path) -> None:
    """Remove temporary files that killed processes left beside `path`; no process may be writing it."""
    for temporary in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an exception.

    Raises:
        OutputError: The parent folder is not writable.
    """
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise not_writable(path, error) from error
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        replace_folder(temporary, path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the folder `source` to `target` on the same file system; an existing `target` is removed.

    The parent of `target` is locked, so that of two concurrent calls the second replaces the folder of the first.
    """
    removed = Path(tempfile.mkdtemp(dir=source.parent, prefix=f"{source.name}.old."))
    old = removed / target.name
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if target.exists():
            target.replace(old)
        try:
            source.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
    finally:
        os.close(handle)
        shutil.rmtree(removed, ignore_errors=True)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents where missing, and return it.

    Raises:
        OutputError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from error
    return folder


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock the file `path` for the block and remove it afterwards; the lock ends with the process.

    Raises:
        OutputError: Another process has the lock, or the folder is not writable.
    """
    handle = acquire_lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def acquire_lock(path: Path, *, folder: Path | None = None) -> int:
    """Lock the file `path` and return its descriptor, which releases the lock when closed; messages name `folder`.

    Raises:
        OutputError: Another process has the lock, or the folder is not writable.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise not_writable(path.parent, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous owner may have removed the file after it was opened here.
        acquired = path.exists() and path.stat().st_ino == os.fstat(handle).st_ino
        if acquired:
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
    except BlockingIOError:
        acquired = False
    except OSError as error:
        os.close(handle)
        raise not_writable(path.parent, error) from error
    if not acquired:
        owner = os.pread(handle, 32, 0).decode(errors="replace") or "unknown"
        os.close(handle)
        hint = "Wait until it ends, or choose another folder with --out."
        raise OutputError(f"Another run (process {owner}) is writing into {folder or path.parent}", hint=hint)
    return handle


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity raise a ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def not_writable(path: Path, error: OSError) -> OutputError:
    """Return the error for a path that the operating system refuses to write."""
    hint = "Choose another place, free disk space, or change the permissions."
    return OutputError(f"Cannot write {path} ({error.strerror or error})", hint=hint)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
