"""Checkpoint of a screen: its weights, its options and its recipe."""

from pathlib import Path

from torch import Tensor

from ifkd.core.errors import CheckpointError
from ifkd.models.checkpoint import RunMeta, read_checkpoint
from ifkd.recipe import ScreenOptions
from ifkd.screen.network import Screen


class ScreenMeta(RunMeta):
    """Metadata in the header of a screen's checkpoint."""

    screen: ScreenOptions


def load_screen(path: Path) -> tuple[Screen, ScreenMeta]:
    """Return a screen in eval mode, and its metadata.

    Raises:
        CheckpointError: The file is missing, damaged, or no checkpoint of a screen.
    """
    weights, meta = read_checkpoint(path, ScreenMeta)
    screen = Screen(meta.screen)
    if shapes(weights) != shapes(screen.state_dict()):
        raise CheckpointError(f"The weights in {path} do not match the screen in its header", hint="Train it again.")
    screen.load_state_dict(weights)
    return screen.eval(), meta


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor."""
    return {name: tuple(value.shape) for name, value in weights.items()}
