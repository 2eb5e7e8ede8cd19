"""state.pt: what a run needs to go on where it was stopped, to the very same weights."""

import io
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful

from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_path


@dataclass(slots=True)
class TrainState:
    """How far a run is."""

    epoch: int = 0
    """Epochs done."""
    iteration: int = 0
    """Optimizer steps done; those beyond whole epochs say where in the epoch it stands."""
    best: float = -1.0
    """Highest validation mAP."""
    waited: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Time spent in steps."""


def save_state(path: Path, standing: TrainState, parts: dict[str, Stateful]) -> None:
    """Write a state, whole or not at all.

    Raises:
        OutputError: It cannot be written; the state before it stays whole.
    """
    buffer = io.BytesIO()
    torch.save(
        {"standing": list(astuple(standing)), **{name: part.state_dict() for name, part in parts.items()}}, buffer
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any] | None:
    """Return a state, on the CPU; None when there is none.

    Raises:
        OutputError: It cannot be read.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise OutputError(f"{path} cannot be read ({error})", hint="Delete the run's folder to begin anew.") from error
    return state


def restore(state: dict[str, Any], parts: dict[str, Stateful]) -> TrainState:
    """Give each part its state back and return how far the run was."""
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return TrainState(*state["standing"])
