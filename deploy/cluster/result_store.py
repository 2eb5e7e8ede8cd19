"""Where results go: a folder of this machine, or a store that fsspec knows, such as s3://bucket/results.

What goes to a store is made in a folder of this machine first, with its locks and journals, and then copied, run.json
last; so a scene in a store is whole where its run.json is.
"""

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.scene.write.output_folder import PRODUCER, RUN_NAME, require_own
from deploy.scene.write.writers import RESULT_NAMES
from ifkd.core.errors import IfkdError, MissingExtraError, OutputError, UsageError
from ifkd.core.files import make_folder

PROBE_NAME = ".ifkd-write-check"
WORK_FOLDER = "ifkd-work"


class ResultStore(ABC):
    """Where the results of a run go: those of one scene, or a folder for each of several."""

    work: Path
    """The folder of this machine in which they are made."""

    @abstractmethod
    def require_access(self, names: Sequence[str] = ()) -> None:
        """Refuse a place that cannot be written, or folders of these names in it that no detection wrote.

        Raises:
            OutputError: So it is.
        """

    @abstractmethod
    def publish(self, name: str | None = None) -> None:
        """Bring the files of a scene to their place: those of the folder `name`, or of the place itself.

        Raises:
            OutputError: They cannot be written there, or would replace what no detection wrote.
        """

    @abstractmethod
    def put(self, names: Sequence[str]) -> None:
        """Bring files of these names, which lie beside the scenes' folders, to their place.

        Raises:
            OutputError: They cannot be written there.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return where it is, as the user named it."""


class FolderStore(ResultStore):
    """A folder of this machine: results are made where they stay."""

    def __init__(self, folder: Path) -> None:
        self.work = folder

    def require_access(self, names: Sequence[str] = ()) -> None:
        """Refuse folders; see `Store.require_access`. The place of one scene is looked at when it is locked."""
        if names:
            probe = make_folder(self.work) / PROBE_NAME
            try:
                probe.write_bytes(b"")
                probe.unlink()
            except OSError as error:
                raise _unwritable(str(self.work), error) from error
        for name in names:
            require_own(self.work / name, RESULT_NAMES)

    def publish(self, name: str | None = None) -> None:
        """Do nothing: the files lie where they belong."""

    def put(self, names: Sequence[str]) -> None:
        """Do nothing: the files lie where they belong."""

    def __str__(self) -> str:
        """Return the folder."""
        return str(self.work)


class RemoteStore(ResultStore):
    """A store that fsspec knows.

    Args:
        address: `protocol://...`.
        work: Where results are made before they are copied; by default a folder `ifkd-work` here.

    Raises:
        MissingExtraError: fsspec is not installed.
        UsageError: There is no such protocol, or its package is not installed.
    """

    def __init__(self, address: str, *, work: Path | None = None) -> None:
        try:
            import fsspec  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise MissingExtraError("fsspec", extra="ray", need=f"Writing to {address}") from error
        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise UsageError(
                f"Writing to {address} needs a package that is not installed ({error})",
                hint="Install it beside ifkd: s3fs for s3://, gcsfs for gs://, adlfs for az://.",
            ) from error
        except ValueError as error:
            raise UsageError(f"Results cannot be written to {address} ({error})") from error
        self._address = address.rstrip("/")
        digest = hashlib.sha256(self._address.encode()).hexdigest()[:12]
        self.work = (work or Path(WORK_FOLDER)) / digest

    def require_access(self, names: Sequence[str] = ()) -> None:  # noqa: ARG002 - looked at when a scene is published
        """Refuse a store that cannot be written; what it holds is looked at when a scene is published."""
        make_folder(self.work)
        with _reported(self._address):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/{PROBE_NAME}", b"ifkd")
            self._files.rm_file(f"{self._root}/{PROBE_NAME}")

    def publish(self, name: str | None = None) -> None:
        """Copy the files, run.json last, and take away those of an earlier run; see `Store.publish`."""
        folder, root, address = self.work, self._root, self._address
        if name is not None:
            folder, root, address = folder / name, f"{root}/{name}", f"{address}/{name}"
        files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == RUN_NAME)
        with _reported(address):
            self._clear(root, address)
            self._files.makedirs(root, exist_ok=True)
            for path in files:
                self._files.put_file(str(path), f"{root}/{path.name}")
        shutil.rmtree(folder)

    def put(self, names: Sequence[str]) -> None:
        """Copy files; see `Store.put`."""
        with _reported(self._address):
            for name in names:
                self._files.put_file(str(self.work / name), f"{self._root}/{name}")

    def __str__(self) -> str:
        """Return the address."""
        return self._address

    def _clear(self, root: str, address: str) -> None:
        """Take an earlier run's files of a scene away."""
        there = [name for name in (RUN_NAME, *RESULT_NAMES) if self._files.exists(f"{root}/{name}")]
        if there and not self._is_ours(root):
            raise OutputError(
                f"{address} holds {', '.join(there)}, not written by {PRODUCER}",
                hint="Choose another place with --out, or move them away.",
            )
        for name in there:
            self._files.rm_file(f"{root}/{name}")

    def _is_ours(self, root: str) -> bool:
        try:
            content: Any = json.loads(self._files.cat_file(f"{root}/{RUN_NAME}"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and str(content.get("producer", "")).startswith(PRODUCER)


def open_store(out: str, *, work: Path | None = None) -> ResultStore:
    """Return the store of an `--out`: a path, or an address of fsspec.

    Raises:
        MissingExtraError: fsspec is not installed.
        UsageError: There is no such protocol.
    """
    return RemoteStore(out, work=work) if "://" in out else FolderStore(Path(out))


@contextmanager
def _reported(place: str) -> Iterator[None]:
    """Say in one line what a store raises: what its client does, which shares no base class with others."""
    try:
        yield
    except IfkdError:
        raise
    except Exception as error:
        raise _unwritable(place, error) from error


def _unwritable(place: str, error: Exception) -> OutputError:
    said = str(error) or type(error).__name__
    return OutputError(f"Cannot write {place} ({said})", hint="Choose another place, or free space and rights.")
