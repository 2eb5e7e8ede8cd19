"""Read text, write files and folders atomically, lock files and compute digests."""

import codecs
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ifkd.core.errors import DataError, IfkdError, OutputError

SAVE_AS_UTF_8 = "Save it as UTF-8."
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped half of a character in JSON; both halves together are valid."""
PROBE_BYTES = 4096
TEMPORARY_BYTES = 100
"""Bytes of a name with which the temporary file or folder beside it begins."""


def read_text(
    path: Path, *, what: str = "file", error_type: type[IfkdError] = DataError, hint: str | None = None
) -> str:
    r"""Return the text of a UTF-8 file, without a byte order mark and with `\n` at the end of each line.

    Raises:
        IfkdError: The file, which is a `what`, is missing, unreadable or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise error_type(f"There is no {what} {path}", hint=hint or "Check the path.") from error
    except IsADirectoryError as error:
        raise error_type(f"{path} cannot be read", got="a folder", expected=what, hint=hint) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise error_type(f"{path} cannot be read ({reason})", hint=hint) from error
    if content.startswith(UTF_16_MARKS) or b"\0" in content:
        got = "UTF-16" if content.startswith(UTF_16_MARKS) else "null bytes, as in UTF-16 or in a binary file"
        raise error_type(f"{path} cannot be read as text", got=got, expected="UTF-8", hint=hint or SAVE_AS_UTF_8)
    try:
        text = content.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        problem, got, expected = f"{path} cannot be read as text", f"the byte 0x{byte:02x} in line {line}", "UTF-8"
        raise error_type(problem, got=got, expected=expected, hint=hint or SAVE_AS_UTF_8) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(
    path: Path, *, what: str = "file", error_type: type[IfkdError] = DataError, hint: str | None = None
) -> Any:
    """Return the value of an untrusted JSON file.

    Raises:
        IfkdError: The file is missing or unreadable, or is not JSON in UTF-8.
    """
    text = read_text(path, what=what, error_type=error_type, hint=hint)
    try:
        value = json.loads(text)
        if SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # fails for half a character, which cannot be written again
    except UnicodeEncodeError as error:
        got = repr(error.object[error.start : error.end])
        problem = f"{path} has text that is not Unicode"
        raise error_type(problem, got=got, hint="It may be a file name that is not UTF-8; rename the file.") from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path} is not a JSON file ({error})", hint=hint) from error
    return value


def json_items(content: dict[str, Any]) -> dict[str, Any]:
    """Return the items of an object that can be written as JSON: no NaN, infinity or invalid characters."""
    kept = {}
    for key, value in content.items():
        try:
            json.dumps([key, value], allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            continue
        kept[key] = value
    return kept


def require_unicode(name: str, error_type: type[IfkdError] = DataError) -> None:
    """Refuse a file name that Python could not decode; neither GDAL nor a UTF-8 file can contain it.

    Raises:
        IfkdError: The name has bytes that are not characters.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        content = name.encode(errors="surrogateescape")
        hint = "Rename the file."
        with suppress(UnicodeDecodeError):
            content.decode()
            hint = "Names are UTF-8, but the locale is not: set LC_ALL=C.UTF-8."
        raise error_type("A file name is not UTF-8", got=repr(content), hint=hint) from error


def shortened(name: str, max_bytes: int) -> str:
    """Return the start of a file name that has at most `max_bytes` bytes, which file systems limit, not characters."""
    return name.encode(errors="surrogateescape")[:max_bytes].decode(errors="ignore")


def folded(name: str) -> str:
    """Return a file name in the form in which file systems that ignore case and Unicode normalization compare it."""
    return unicodedata.normalize("NFC", name.casefold())


def existing_path(folder: Path, name: str) -> Path:
    r"""Return the path of a file that a list in `folder` names, also with `\` for `/` and with `%20` for a space.

    The name as it is stated takes precedence, and is returned where there is no file.
    """
    forms = (name, name.replace("\\", "/"), unquote(name))
    return next((folder / form for form in forms if (folder / form).exists()), folder / name)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at once when the block ends without an exception.

    Raises:
        OutputError: The folder or the file is not writable.
    """
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_temporary_prefix(path.stem), suffix=path.suffix)
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


def cache_folder() -> Path:
    """Return $IFKD_CACHE or, if that is not set, the folder of this program in the user's cache; it may not exist."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("IFKD_CACHE") or Path(user) / "ifkd").expanduser()


def require_writable(path: Path, *, size: int = 0) -> None:
    """Refuse a file of `size` bytes that cannot be written, before the work whose result it is; nothing is left behind.

    Raises:
        OutputError: The folder is not writable or cannot be created, the disk is full, or there is no regular file.
    """
    absent = [folder for folder in path.parents if not folder.exists()]
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a file", hint="Choose another path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ifkd-write-check.") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
        if (free := shutil.disk_usage(path.parent).free) < size:
            got, expected = f"{free / 1e6:.0f} MB free", f"at least {size / 1e6:.0f} MB"
            raise OutputError(f"The disk of {path.parent} is too full", got=got, expected=expected, hint="Free space.")
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()


def remove_temporary_files(path: Path) -> None:
    """Remove temporary files that killed processes left beside `path`; no process may be writing it."""
    for temporary in path.parent.glob(f"{glob.escape(_temporary_prefix(path.stem))}*{glob.escape(path.suffix)}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path` when the block ends without an exception.

    Raises:
        OutputError: The parent folder is not writable.
    """
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_temporary_prefix(path.name)))
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
    removed = Path(tempfile.mkdtemp(dir=source.parent, prefix=f"{shortened(source.name, TEMPORARY_BYTES)}.old."))
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
    if error.errno == errno.ENAMETOOLONG:
        hint = "Choose a shorter name; most file systems allow 255 bytes."
    return OutputError(f"Cannot write {path} ({error.strerror or error})", hint=hint)


def _temporary_prefix(name: str) -> str:
    return f".{shortened(name, TEMPORARY_BYTES)}."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
