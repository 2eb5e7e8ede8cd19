"""The folder of a run's results: held by one run at a time, and changed only when everything is written.

Beside the results lies, while a run lasts or after it was cut off, the folder `.ifkd-detect` with the run's lock, its
journal and the files in the making.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, acquire_lock

RUN_NAME = "run.json"
PRODUCER = "ifkd detect"
STAGE_NAME = ".ifkd-detect"


class OutputFolder:
    """A folder for results, held by this run. Use it in a `with`.

    Args:
        folder: Where the results will lie; made when it is absent.
        names: Files that a run may write there, beside run.json.
        restart: Forget what an earlier run that was cut off had done.

    Raises:
        OutputError: It cannot be made or written, another run holds it, or it holds files of these names that no
            detection wrote.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, restart: bool = False) -> None:
        self._folder = make_folder(folder)
        self._names = tuple(names)
        self._stage = folder / STAGE_NAME
        self._fresh = not self._stage.is_dir()
        if self._fresh:
            require_own(folder, self._names)
        make_folder(self._stage)
        self._lock = acquire_lock(self._stage / "lock", folder=folder)
        self.journal_path = self._stage / "journal"
        if restart:
            self.journal_path.unlink(missing_ok=True)
        self._files = self._stage / "files"

    def make_stage(self) -> Path:
        """Return an empty folder for the files in the making."""
        try:
            shutil.rmtree(self._files, ignore_errors=False) if self._files.exists() else None
        except OSError as error:
            raise self._unwritable(error) from error
        return make_folder(self._files)

    def commit(self) -> None:
        """Put the files in their places, and forget the journal.

        Results of an earlier run that this one does not write are taken away. run.json comes last, so where it lies
        the files beside it are whole and belong together.
        """
        fresh = sorted(path.name for path in self._files.iterdir() if path.name != RUN_NAME)
        try:
            (self._folder / RUN_NAME).unlink(missing_ok=True)
            for name in self._names:
                if name not in fresh:
                    (self._folder / name).unlink(missing_ok=True)
            for name in [*fresh, RUN_NAME]:
                (self._files / name).replace(self._folder / name)
            shutil.rmtree(self._stage)
        except OSError as error:
            raise self._unwritable(error) from error

    def discard(self) -> None:
        """Forget what this run did."""
        shutil.rmtree(self._stage, ignore_errors=True)

    def __enter__(self) -> "OutputFolder":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder back; without a row of tiles to go on from, nothing of a failed run stays."""
        if self._stage.is_dir():
            shutil.rmtree(self._files, ignore_errors=True)
            if not self.journal_path.exists():
                self.discard()
        os.close(self._lock)

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"Cannot write into {self._folder} ({error.strerror or error})",
            hint="Choose another place, or free space and rights.",
        )


def require_own(folder: Path, names: Sequence[str], *, record: str = RUN_NAME) -> None:
    """Refuse a folder with files of these names that no detection wrote.

    Args:
        folder: May be absent.
        names: Of files beside the record.
        record: The file that says who wrote them.

    Raises:
        OutputError: It holds some.
    """
    foreign = [name for name in dict.fromkeys((record, *names)) if (folder / name).exists()]
    if foreign and not _is_ours(folder / record):
        raise OutputError(
            f"{folder} holds {', '.join(foreign)}, not written by {PRODUCER}",
            hint="Choose another folder with --out, or move them away.",
        )


def _is_ours(record: Path) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("producer", "")).startswith(PRODUCER)
