"""The ledger of a run over many scenes: which are done, so that the same command goes on with the others.

The first line says, as JSON, what the run depends on; each line after it is a finished scene. A line is on the disk
before the scene counts, and one that was cut off is cut away.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from deploy.cluster.scene_list import SceneSource
from deploy.cluster.summary import SceneEntry
from deploy.scene.run.row_journal import describe_difference
from ifkd.core.errors import OutputError


class CompletedScenes:
    """The finished scenes of one run. Use it in a `with`.

    Args:
        path: Where it lies, or will.
        identity: What the run depends on beside its scenes, as JSON. A ledger of another identity is refused with the
            difference.

    Raises:
        OutputError: It cannot be written, or belongs to a run with other settings.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path = path
        self._done: dict[str, tuple[str, SceneEntry]] = {}
        try:
            self._stream = path.open("a+b", buffering=0)
            self._open(json.loads(json.dumps(identity)))
        except OSError as error:
            raise self._unwritable(error) from error

    def __len__(self) -> int:
        """Return the number of finished scenes."""
        return len(self._done)

    def entry(self, source: SceneSource) -> SceneEntry | None:
        """Return what is known of a scene, or None when it is not done or its file was changed since."""
        stamp, entry = self._done.get(source.name, (None, None))
        return entry if stamp == stamp_of(source) else None

    def append(self, source: SceneSource, entry: SceneEntry) -> None:
        """Write a finished scene down; when this returns, it is on the disk.

        Raises:
            OutputError: There is no room.
        """
        try:
            self._write({"stamp": stamp_of(source), "entry": entry.model_dump(mode="json")})
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> "CompletedScenes":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, identity: dict[str, Any]) -> None:
        self._stream.seek(0)
        lines = self._stream.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole:  # new, or cut off in its first line
            self._stream.truncate(0)
            self._write(identity)
            return
        there = json.loads(whole[0])
        if there != identity:
            self._stream.close()
            raise OutputError(
                f"{self._path.parent.parent} holds an unfinished run that differs from this one: "
                f"{describe_difference(there, identity)}",
                hint="Give the command of that run to go on, or --no-resume to begin anew.",
            )
        for line in whole[1:]:
            content = json.loads(line)
            try:
                entry = SceneEntry.model_validate(content["entry"])
            except ValidationError:  # written by another version: the scene is looked at again
                continue
            self._done[entry.name] = (content["stamp"], entry)
        self._stream.truncate(sum(map(len, whole)))

    def _write(self, content: dict[str, Any]) -> None:
        left = memoryview(json.dumps(content).encode() + b"\n")
        while left:
            left = left[self._stream.write(left) :]
        os.fsync(self._stream.fileno())

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"Cannot write {self._path} ({error.strerror or error})",
            hint="Free space and rights, then give the same command again: it goes on where it stopped.",
        )


def stamp_of(source: SceneSource) -> str:
    """Return a scene's place, and for a file of this machine its size and time of change."""
    if isinstance(source.place, Path) and source.place.is_file():
        state = source.place.stat()
        return f"{source.place}: {state.st_size} bytes of {state.st_mtime_ns}"
    return str(source.place)
