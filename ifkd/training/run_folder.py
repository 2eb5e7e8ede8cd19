"""A training run and its folder: file names, the result, and the check that a folder belongs to the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ifkd.core.config import Schema, differences, dump, read_toml, read_versioned
from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, remove_temporary_files, write_text
from ifkd.data.coco import CocoDataset
from ifkd.data.metrics import Metrics
from ifkd.models import TaskNetwork
from ifkd.models.checkpoint import RunMeta
from ifkd.recipe import Recipe, TrainingOptions

BEST, RESULT = "best.safetensors", "result.json"
DIVERGED = "nonfinite_batch"
"""Start of the names of the files with a batch whose loss or gradient is not finite."""


class TrainingResult(Schema):
    """The content of result.json, which a finished run writes."""

    schema_version: Literal[2] = 2
    label: str
    checkpoint: str
    """Path of the best checkpoint, relative to the run's folder."""
    best_validation_map: float | None
    """None without labeled objects in the validation split."""
    last_validation: Metrics
    epochs: int
    iterations: int
    train_seconds: float
    """Time in optimizer steps, without validation."""
    machine: str
    gradient_ratios: dict[str, float] = {}
    """Term of the method -> norm of its weighted gradient at the student's pyramid over that of the task losses, a
    running mean at the end."""


class RunFolder:
    """The folder of one training run and the paths of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / BEST  # checkpoint of the highest validation mAP
        self.last = path / "last.safetensors"  # checkpoint of the last epoch
        self.method = path / "method.safetensors"  # the method's own learned layers, saved with the best checkpoint
        self.state = path / "state.pt"  # training state for resuming, removed at the end of the run
        self.result = path / RESULT  # written at the end of the run
        self.config = path / "config.toml"  # checkpoint metadata, including the recipe
        self.lock = path / "lock"  # lock file of the process that trains

    @property
    def is_finished(self) -> bool:
        """True if the run has a result."""
        return self.result.is_file()

    @property
    def has_diverged(self) -> bool:
        """True if the run stopped because a loss or gradient was not finite."""
        return not self.is_finished and any(self.path.glob(f"{DIVERGED}*"))

    def read_result(self) -> TrainingResult:
        """Read result.json.

        Raises:
            DataError: The file cannot be read, is invalid, or has another schema version.
        """
        return read_versioned(self.result, TrainingResult, hint="Train the run again with --no-resume.")

    def remove_temporary_files(self) -> None:
        """Remove incomplete files of a killed process."""
        for path in (self.best, self.last, self.method, self.state):
            remove_temporary_files(path)

    def claim(self, meta: RunMeta, label: str) -> None:
        """Write config.toml into an empty folder; compare it with `meta` in a folder that has one.

        Raises:
            OutputError: The folder contains a run with other settings, or is not writable.
        """
        self.require_settings(meta)
        make_folder(self.path)
        if not self.config.is_file():
            write_text(self.config, f"# {label}\n{dump(meta)}")

    def require_settings(self, meta: RunMeta) -> None:
        """Refuse a folder with a run of other settings.

        Raises:
            OutputError: The folder contains a run with other settings.
        """
        if not self.config.is_file():
            return
        existing = read_toml(self.config, OutputError)
        settings = meta.model_dump(mode="json", exclude_none=True)
        if difference := differences(_weight_settings(existing), _weight_settings(settings)):
            hint = "Choose another folder, or start again with --no-resume."
            raise OutputError(f"{self.path} contains a run with other settings: {difference}", hint=hint)


def _weight_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that determine the weights: detector, data, schedule, seed, method, the teacher's digest."""
    provenance = {key: value for key, value in meta["provenance"].items() if key not in ("teacher", "versions")}
    return {key: value for key, value in meta.items() if key not in ("recipe", "provenance")} | provenance


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRun:
    """Settings, data and output folder of one training run."""

    folder: RunFolder
    label: str
    """Text before the progress bar."""
    recipe: Recipe
    """The section `data` states how training tiles are loaded."""
    training: TrainingOptions
    meta: RunMeta
    """Metadata of the run's checkpoints."""
    train_data: CocoDataset
    validation_data: CocoDataset
    validate: Callable[[TaskNetwork, CocoDataset, Recipe], Metrics] | None = None
    """Returns the metrics of the network, by default those of a detector."""
