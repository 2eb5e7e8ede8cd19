"""The folder of one training run: its file names, and the check that it belongs to the run."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ifkd.core.config import Schema, differences, dump
from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, write_text
from ifkd.core.versioned_json import read_versioned
from ifkd.data.metrics import Metrics
from ifkd.models.checkpoint import CheckpointMeta

BEST, RESULT = "best.safetensors", "result.json"
NOT_COMPARED = ("recipe.", "provenance.teacher", "provenance.versions")
"""Prefixes of checkpoint metadata that two runs in one folder may differ in. The detector, the data, the schedule, the
seed, the method and the teacher's digest must be equal."""


class TrainingResult(Schema):
    """The content of result.json, which a finished run writes."""

    schema_version: Literal[2] = 2
    label: str
    checkpoint: str
    """Path of the best checkpoint, relative to the run's folder."""
    best_validation_map: float
    last_validation: Metrics
    epochs: int
    iterations: int
    train_seconds: float
    """Time in optimizer steps, without validation."""
    machine: str


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one training run and the paths of its files."""

    path: Path

    @property
    def best(self) -> Path:
        """The checkpoint of the highest validation mAP."""
        return self.path / BEST

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.path / "last.safetensors"

    @property
    def method(self) -> Path:
        """The method's own learned layers, saved together with the best checkpoint."""
        return self.path / "method.safetensors"

    @property
    def state(self) -> Path:
        """The training state for resuming, removed at the end of the run."""
        return self.path / "state.pt"

    @property
    def result(self) -> Path:
        """The result, written at the end of the run."""
        return self.path / RESULT

    @property
    def config(self) -> Path:
        """The checkpoint metadata, including the recipe, as TOML."""
        return self.path / "config.toml"

    @property
    def lock(self) -> Path:
        """The lock file of the process that trains."""
        return self.path / "lock"

    @property
    def is_finished(self) -> bool:
        """Whether the run has a result."""
        return self.result.is_file()

    def read_result(self) -> TrainingResult:
        """Read result.json.

        Raises:
            DataError: The file cannot be read, is invalid, or has another schema version.
        """
        return read_versioned(self.result, TrainingResult, hint="Train the run again with --no-resume.")

    def claim(self, meta: CheckpointMeta, label: str) -> None:
        """Write config.toml into an empty folder; compare it with `meta` in a folder that has one.

        Raises:
            OutputError: The folder contains a run with other settings, or is not writable.
        """
        make_folder(self.path)
        if not self.config.is_file():
            write_text(self.config, f"# {label}\n{dump(meta)}")
        elif difference := self._differences(meta):
            raise OutputError(
                f"{self.path} contains a run with other settings: {difference}",
                hint="Choose another folder, or start again with --no-resume.",
            )

    def _differences(self, meta: CheckpointMeta) -> str:
        """Return the differences of config.toml and `meta`."""
        try:
            existing = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            return f"its config.toml is not TOML ({error})"
        return differences(existing, meta.model_dump(mode="json", exclude_none=True), ignore=NOT_COMPARED)
