"""Log of the completed scenes of a batch run, so that an interrupted run can be resumed. A record is a line of JSON."""

import json
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.cluster.summary import SceneEntry
from deploy.scene.read.scene_list import SceneSource
from deploy.scene.run.append_log import AppendLog
from ifkd.core.errors import SceneError
from ifkd.imagery.raster import RasterFile


class CompletedScenes(AppendLog):
    """Completed scenes of one batch run; see `AppendLog`. Scenes with other filters than these are not completed."""

    def __init__(self, path: Path, identity: dict[str, Any], *, filters: dict[str, Any] | None = None) -> None:
        self._filters = filters
        self._entries: dict[str, tuple[str, SceneEntry]] = {}
        super().__init__(path, identity)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, source: SceneSource) -> SceneEntry | None:
        """Return the entry of a scene; None if it is not completed, or its files or the filters have changed."""
        fingerprint, entry = self._entries.get(source.name, (None, None))
        return entry if fingerprint == self._fingerprint(source) else None

    def append(self, source: SceneSource, entry: SceneEntry) -> None:
        """Append a completed scene; on return, it is on the disk.

        Raises:
            OutputError: The disk is full, or the file is not writable.
        """
        fingerprint = self._fingerprint(source)
        record = {"fingerprint": fingerprint, "entry": entry.model_dump(mode="json")}
        self._append(json.dumps(record).encode() + b"\n")
        self._entries[source.name] = (fingerprint, entry)

    def _read_records(self) -> None:
        for line in self._stream.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            self._end += len(line)
            record = json.loads(line)
            try:
                entry = SceneEntry.model_validate(record["entry"])
            except ValidationError:  # an entry of another version: the scene is processed again
                continue
            self._entries[entry.name] = (record["fingerprint"], entry)

    def _fingerprint(self, source: SceneSource) -> str:
        """Return location, time and filters of a scene, with the state of all its files if they are local."""
        scene = f"{source.location} at {source.time}"
        if self._filters is not None:
            scene += f" with filters {json.dumps(self._filters)}"
        if isinstance(source.location, Path) and source.location.is_file():
            state = source.location.stat()
            scene += f": {state.st_size} bytes of {state.st_mtime_ns}"
            with suppress(SceneError), closing(RasterFile(source.location)) as raster:
                scene += f", {json.dumps(raster.files(), sort_keys=True)}"
        return scene
