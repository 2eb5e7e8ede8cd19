"""A training run: its settings, and the folder that is claimed for them."""

from dataclasses import dataclass
from pathlib import Path

from ifkd import recipe
from ifkd.core.config import differences, dump
from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, write_text
from ifkd.data.coco import CocoDataset
from ifkd.models.checkpoint import CheckpointMeta

BEST, LAST, STATE, RESULT, LOCK = "best.safetensors", "last.safetensors", "state.pt", "result.json", "lock"
LEARNED = "method.safetensors"
"""What the method had learned when the best checkpoint was kept."""
INDECISIVE = ("recipe.", "provenance.teacher", "provenance.versions")
"""Parts of a run's record that its weights do not depend on, or that stand elsewhere in it: what decides is the
detector, the data, the schedule, the seed, the method and the teacher's digest."""


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """One training run."""

    folder: Path
    label: str
    """Shown beside the progress bar."""
    settings: recipe.Recipe
    training: recipe.TrainingOptions
    meta: CheckpointMeta
    """Of the checkpoints it writes."""
    train_data: CocoDataset
    validation_data: CocoDataset


def claim(run: RunFolder) -> None:
    """Take the folder for this run, or find that it holds this very run.

    Raises:
        OutputError: It holds a run of other settings, or cannot be written.
    """
    text = f"# {run.label}\n{dump(run.meta)}"
    path = make_folder(run.folder) / "config.toml"
    if not path.is_file():
        write_text(path, text)
    elif difference := differences(path.read_text(encoding="utf-8"), text, besides=INDECISIVE):
        raise OutputError(
            f"{run.folder} holds a run of other settings: {difference}",
            hint="Choose another folder, or begin anew with --no-resume.",
        )
