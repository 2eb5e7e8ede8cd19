"""What a method learned beside its student, as one safetensors file from which it can be built again."""

from pathlib import Path

import torch

from ifkd import recipe
from ifkd.core.config import Schema
from ifkd.core.errors import CheckpointError
from ifkd.distillation.methods import build_method
from ifkd.distillation.methods.method import Method, NetworkPair
from ifkd.models.checkpoint import read_checkpoint, save_checkpoint


class MethodCheckpointMeta(Schema):
    """What a method must know to be built again."""

    method: recipe.MethodOptions
    channels: int
    teacher_channels: int
    levels: tuple[recipe.Level, ...]
    feature_rms: tuple[float, ...]
    """As in `NetworkPair`."""


def save_method_checkpoint(path: Path, method: Method) -> None:
    """Write what a method has learned, atomically; nothing when nothing in it learns.

    Raises:
        OutputError: The file cannot be written.
    """
    if not method.state_dict():
        return
    between = method.between
    meta = MethodCheckpointMeta(
        method=method.config,
        channels=between.channels,
        teacher_channels=between.teacher_channels,
        levels=between.levels,
        feature_rms=between.feature_rms,
    )
    save_checkpoint(path, method, meta)


def load_method_checkpoint(path: Path) -> Method:
    """Return a method as it was when its file was written, in eval mode; it knows no detectors.

    Raises:
        CheckpointError: The file is absent, damaged, or does not fit its own header.
    """
    weights, meta = read_checkpoint(path, MethodCheckpointMeta)
    facts = meta.model_dump(exclude={"method"})
    with torch.random.fork_rng(devices=[]):
        method = build_method(meta.method, NetworkPair(**facts))
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own header ({error})") from error
    return method.eval()
