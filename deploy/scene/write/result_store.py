"""Destinations of results: a folder of this machine, or a remote store of fsspec such as s3://bucket/results.

Results for a remote store are first written to a local folder, with its locks and journals, and then copied, the run
record last; so a scene in a store is complete if it has a run record.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from deploy.scene.write.file_names import (
    BATCH_FILES,
    CROPS_FOLDER,
    OWN_FILES,
    PRODUCER,
    RUN_FILE,
    STATE_FOLDER,
    SUMMARY_FILE,
)
from deploy.scene.write.output_folder import require_own_files, require_own_record
from ifkd.core.errors import IfkdError, MissingExtraError, OutputError, UsageError
from ifkd.core.files import make_folder

PROBE_NAME = ".ifkd-write-check"
MARKER_NAMES = {RUN_FILE: ".ifkd-upload", SUMMARY_FILE: ".ifkd-upload-batch"}
"""Record -> file that marks the files that end with the record as those of an upload that is not complete."""
WORK_FOLDER = "ifkd-work"


class ResultStore:
    """Destination of the results of one scene, or of several scenes with a folder each: a folder of this machine."""

    def __init__(self, work: Path) -> None:
        self.work = work
        """Local folder in which the results are written."""

    def require_access(self, names: Sequence[str] = ()) -> None:
        """Refuse a store that is not writable; the folder of a single scene is checked when it is locked.

        Raises:
            OutputError: The store is not writable, or a folder of `names` has result files of another program.
        """
        if names:
            probe = make_folder(self.work) / PROBE_NAME
            try:
                probe.write_bytes(b"")
                probe.unlink()
            except OSError as error:
                raise _not_writable(str(self.work), error) from error
        for name in names:
            folder = self.work / name
            if not (folder / STATE_FOLDER).is_dir():  # an interrupted run may have a part of its files
                require_own_files(folder, OWN_FILES)

    def has_results(self, name: str) -> bool:
        """Return whether the folder `name` has complete results."""
        return (self.work / name / RUN_FILE).is_file()

    def publish(self, name: str | None = None) -> None:
        """Copy the results of the folder `name`, or of the only scene, to the store, if they are not in place."""

    def put(self, names: Sequence[str]) -> None:
        """Copy files of the work folder to the store, if they are not in place."""

    def __str__(self) -> str:
        return str(self.work)


class RemoteStore(ResultStore):
    """A remote store of fsspec; the results are first written into the folder `work`, by default `ifkd-work`.

    Raises:
        MissingExtraError: fsspec is not installed.
        UsageError: The protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str, *, work: Path | None = None) -> None:
        try:
            import fsspec  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise MissingExtraError("fsspec", extra="ray", need=f"Writing to {url}") from error
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            hint = "Install it: s3fs for s3://, gcsfs for gs://, adlfs for az://."
            raise UsageError(f"Writing to {url} needs a package that is not installed ({error})", hint=hint) from error
        except ValueError as error:
            raise UsageError(f"Results cannot be written to {url} ({error})") from error
        self._url = url.rstrip("/")
        super().__init__((work or Path(WORK_FOLDER)) / hashlib.sha256(self._url.encode()).hexdigest()[:12])

    def require_access(self, names: Sequence[str] = ()) -> None:
        """Refuse a store that is not writable, or has result files of another program."""
        make_folder(self.work)
        with _as_output_error(self._url):
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/{PROBE_NAME}", b"ifkd")
            self._files.rm_file(f"{self._root}/{PROBE_NAME}")
            self._own_files(self._root, self._url, *((SUMMARY_FILE, BATCH_FILES) if names else (RUN_FILE, OWN_FILES)))
            for name in sorted(self._names_in(self._root).intersection(names)):
                self._own_files(f"{self._root}/{name}", f"{self._url}/{name}", RUN_FILE, OWN_FILES)

    def has_results(self, name: str) -> bool:
        """Return whether the folder `name` has complete results."""
        with _as_output_error(self._url):
            return bool(self._files.exists(f"{self._root}/{name}/{RUN_FILE}"))

    def publish(self, name: str | None = None) -> None:
        """Remove the files of an earlier run, and copy the files of this run.

        Until the copy is complete, a marker states that the files are ours.

        Raises:
            OutputError: The store is not writable, or has result files of another program.
        """
        folder, root, url = self.work, self._root, self._url
        if name is not None:
            folder, root, url = folder / name, f"{root}/{name}", f"{url}/{name}"
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == RUN_FILE)
        with _as_output_error(url):
            present = self._own_files(root, url, RUN_FILE, OWN_FILES)
            targets = {path: f"{root}/{path.relative_to(folder).as_posix()}" for path in files}
            with self._marked(root, RUN_FILE):
                for old in present:
                    self._files.rm(f"{root}/{old}", recursive=old == CROPS_FOLDER)
                for parent in {target.rpartition("/")[0] for target in targets.values()}:
                    self._files.makedirs(parent, exist_ok=True)
                for path, target in targets.items():
                    self._files.put_file(str(path), target)
        shutil.rmtree(folder)

    def put(self, names: Sequence[str]) -> None:
        """Copy files of a batch from the work folder to the store, its summary last.

        Raises:
            OutputError: The store is not writable, or has such files of another program.
        """
        with _as_output_error(self._url):
            self._own_files(self._root, self._url, SUMMARY_FILE, BATCH_FILES)
            with self._marked(self._root, SUMMARY_FILE):
                for name in names:
                    self._files.put_file(str(self.work / name), f"{self._root}/{name}")

    @contextmanager
    def _marked(self, root: str, record: str) -> Iterator[None]:
        """Mark the files of a folder as those of an incomplete upload, until the block ends without an exception."""
        marker = f"{root}/{MARKER_NAMES[record]}"
        self._files.makedirs(root, exist_ok=True)
        self._files.pipe_file(marker, PRODUCER.encode())
        yield
        self._files.rm_file(marker)

    def _own_files(self, root: str, url: str, record: str, names: Sequence[str]) -> list[str]:
        """Return which of the record and the `names` are in a folder of the store, which may be missing.

        Raises:
            OutputError: Another program wrote them.
        """
        found = self._names_in(root)
        present = [name for name in dict.fromkeys((record, *names)) if name in found]
        if present and MARKER_NAMES[record] not in found:
            content = self._files.cat_file(f"{root}/{record}") if record in present else b""
            require_own_record(content, url, present)
        return present

    def _names_in(self, root: str) -> set[str]:
        """Return the names of files and folders in a folder of the store; none if it is missing."""
        self._files.invalidate_cache()
        try:
            return {PurePosixPath(path).name for path in self._files.ls(root, detail=False)}
        except FileNotFoundError:
            return set()

    def __str__(self) -> str:
        return self._url


def open_store(out: str, *, work: Path | None = None) -> ResultStore:
    """Return the store of `--out`: a path, or a URL of fsspec.

    Raises:
        MissingExtraError: fsspec is not installed.
        UsageError: The protocol is unknown.
    """
    return RemoteStore(out, work=work) if "://" in out else ResultStore(Path(out))


@contextmanager
def _as_output_error(url: str) -> Iterator[None]:
    """Convert the exceptions of a store's client, which have no common base class, to an `OutputError`."""
    try:
        yield
    except IfkdError:
        raise
    except Exception as error:
        raise _not_writable(url, error) from error


def _not_writable(url: str, error: Exception) -> OutputError:
    hint = "Choose another place, free space, or change the permissions."
    return OutputError(f"Cannot write {url} ({str(error) or type(error).__name__})", hint=hint)
