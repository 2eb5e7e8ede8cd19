"""state.pt: the training state from which an interrupted run resumes to exactly the same weights."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful

from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_path

PROGRESS = "progress"
"""Key of the progress in state.pt; the other keys are names of modules."""


@dataclass(slots=True)
class TrainState:
    """Progress of a run."""

    epoch: int = 0
    """Completed epochs."""
    iteration: int = 0
    """Completed optimizer steps, including those of an incomplete epoch."""
    best_map: float = -1.0
    """Highest validation mAP."""
    validations_since_best: int = 0
    train_seconds: float = 0.0
    """Time in optimizer steps, without validation."""


def save_state(path: Path, progress: TrainState, parts: Mapping[str, Stateful]) -> None:
    """Write the progress and the state of each part atomically.

    Raises:
        OutputError: The file cannot be written; the previous state is unchanged.
    """
    buffer = io.BytesIO()
    torch.save({PROGRESS: asdict(progress), **{name: part.state_dict() for name, part in parts.items()}}, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the content of state.pt on the CPU; None without a file.

    Raises:
        OutputError: The file cannot be read, or is from another version of ifkd.
    """
    if not path.is_file():
        return None
    hint = "Start again with --no-resume."
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise OutputError(f"{path} cannot be read ({error})", hint=hint) from error
    if PROGRESS not in state:
        raise OutputError(f"{path} is from another version of ifkd", hint=hint)
    return state


def restore_state(state: Mapping[str, Any], parts: Mapping[str, Stateful]) -> TrainState:
    """Load the state of each part, and return the progress.

    Raises:
        OutputError: The state does not have every part.
    """
    if absent := [name for name in parts if name not in state]:
        problem = f"state.pt has no {', '.join(absent)}; it is from another version of ifkd"
        raise OutputError(problem, hint="Start again with --no-resume.")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return TrainState(**state[PROGRESS])
