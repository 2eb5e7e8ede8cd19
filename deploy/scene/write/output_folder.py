"""Output folder of a scene: used by one run at a time, and updated only when all files are written.

Until then it contains the folder `.ifkd-detect` with the lock, the row journal and the unfinished files.
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deploy.scene.write.file_names import CROPS_FOLDER, OWN_FILES, PRODUCER, RUN_FILE, STATE_FOLDER
from ifkd.core.errors import OutputError
from ifkd.core.files import acquire_lock, make_folder, not_writable


class OutputFolder:
    """An output folder, created if missing, that is locked for this run. Use it as a context manager.

    To `resume` is to keep the row journal of an interrupted run.

    Raises:
        OutputError: The folder is not writable, is in use by another run, or has result files of another program.
    """

    def __init__(self, folder: Path, *, resume: bool = True) -> None:
        self._folder = make_folder(folder)
        self._state = folder / STATE_FOLDER
        if not self._state.is_dir():
            require_own_files(folder, OWN_FILES)
        make_folder(self._state)
        self._lock = acquire_lock(self._state / "lock", folder=folder)
        self.journal_path = self._state / "row_journal"
        if not resume:
            self.journal_path.unlink(missing_ok=True)
        self._files = self._state / "files"

    def make_staging_folder(self) -> Path:
        """Return an empty folder for the unfinished files."""
        try:
            if self._files.exists():
                shutil.rmtree(self._files)
        except OSError as error:
            raise not_writable(self._folder, error) from error
        return make_folder(self._files)

    def commit(self) -> None:
        """Move the staged files to the output folder, and remove other files of an earlier run and the state folder.

        The run record is moved last, so a folder with a run record is complete.
        """
        staged = sorted(path.name for path in self._files.iterdir() if path.name != RUN_FILE)
        try:
            (self._folder / RUN_FILE).unlink(missing_ok=True)
            if (self._folder / CROPS_FOLDER).exists():
                shutil.rmtree(self._folder / CROPS_FOLDER)
            for name in set(OWN_FILES) - set(staged):
                (self._folder / name).unlink(missing_ok=True)
            for name in [*staged, RUN_FILE]:
                (self._files / name).replace(self._folder / name)
            shutil.rmtree(self._state)
        except OSError as error:
            raise not_writable(self._folder, error) from error

    def discard(self) -> None:
        """Remove the state folder."""
        shutil.rmtree(self._state, ignore_errors=True)

    def __enter__(self) -> "OutputFolder":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        """Release the folder; the state folder is kept only if it has a row journal to resume from."""
        if self._state.is_dir():
            shutil.rmtree(self._files, ignore_errors=True)
            if not self.journal_path.exists():
                self.discard()
        os.close(self._lock)


def require_own_files(folder: Path, names: Sequence[str], *, record: str = RUN_FILE) -> None:
    """Refuse a folder, which may be missing, with files of these names that `ifkd detect` did not write.

    Raises:
        OutputError: The folder has such files, and `record` does not name their producer.
    """
    present = [name for name in dict.fromkeys((record, *names)) if (folder / name).exists()]
    if present:
        content = b""
        with suppress(OSError):
            content = (folder / record).read_bytes()
        require_own_record(content, str(folder), present)


def require_own_record(content: bytes, folder: str, names: Sequence[str]) -> None:
    """Refuse files of a folder whose record, empty if missing, does not name `ifkd detect` as its producer.

    The record must also list the folder of crops, whose name other programs may use beside our files.

    Raises:
        OutputError: The record has another producer, is not JSON or does not list the folder of crops.
    """
    record = None
    with suppress(ValueError):
        record = json.loads(content)
    record = record if isinstance(record, dict) else {}
    foreign = names if not str(record.get("producer", "")).startswith(PRODUCER) else []
    if CROPS_FOLDER in names and CROPS_FOLDER not in (record.get("files") or ()):
        foreign = foreign or [CROPS_FOLDER]
    if foreign:
        hint = "Choose another folder with --out, or move the files."
        raise OutputError(f"{folder} has {', '.join(foreign)}, not written by {PRODUCER}", hint=hint)
