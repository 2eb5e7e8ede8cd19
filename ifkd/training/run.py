"""A training run: its settings, and the folder that is claimed for them."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd import recipe
from ifkd.checkpoint import CheckpointMeta
from ifkd.config import dump
from ifkd.data.coco import CocoDataset
from ifkd.errors import OutputError
from ifkd.files import make_folder, write_text

BEST, LAST, STATE, RESULT, LOCK = "best.safetensors", "last.safetensors", "state.pt", "result.json", "lock"
DIFFERENCES_SHOWN = 4
INDECISIVE = ("recipe.", "provenance.teacher", "provenance.versions")
"""Parts of a run's record that its weights do not depend on, or that stand elsewhere in it: what decides is the
detector, the data, the schedule, the seed, the method and the teacher's digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run."""

    folder: Path
    label: str
    """Shown beside the progress bar."""
    settings: recipe.Recipe
    training: recipe.Training
    meta: CheckpointMeta
    """Of the checkpoints it writes."""
    train_data: CocoDataset
    validation_data: CocoDataset


def claim(run: Run) -> None:
    """Take the folder for this run, or find that it holds this very run.

    Raises:
        OutputError: It holds a run of other settings, or cannot be written.
    """
    text = f"# {run.label}\n{dump(run.meta)}"
    path = make_folder(run.folder) / "config.toml"
    if not path.is_file():
        write_text(path, text)
    elif difference := _difference(path.read_text(encoding="utf-8"), text):
        raise OutputError(
            f"{run.folder} holds a run of other settings: {difference}",
            mend="Choose another folder, or begin anew with --restart.",
        )


def _difference(older: str, newer: str) -> str:
    """Return the first settings that decide the weights in which two TOML texts differ, with the values of both."""
    try:
        there, here = (dict(_flat(tomllib.loads(text))) for text in (older, newer))
    except tomllib.TOMLDecodeError as error:
        return f"its config.toml is not TOML ({error})"
    decisive = (key for key in sorted(there.keys() | here.keys()) if not key.startswith(INDECISIVE))
    keys = [key for key in decisive if there.get(key) != here.get(key)]
    told = [
        f"{key.removeprefix('provenance.')} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here"
        for key in keys
    ]
    return "; ".join(told[:DIFFERENCES_SHOWN]) + ("; …" if len(told) > DIFFERENCES_SHOWN else "")


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
