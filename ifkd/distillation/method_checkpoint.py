"""Checkpoint of a method's own learned layers, from which the method can be built again."""

from pathlib import Path

import torch

from ifkd import recipe
from ifkd.core.config import Schema
from ifkd.core.errors import CheckpointError
from ifkd.distillation.methods import build_method
from ifkd.distillation.methods.method import Method, NetworkPair
from ifkd.models.checkpoint import read_checkpoint, save_checkpoint


class MethodCheckpointMeta(Schema):
    """Metadata in the header of a method's checkpoint; fields as in `NetworkPair`."""

    method: recipe.MethodOptions
    channels: int
    teacher_channels: int
    levels: tuple[recipe.Level, ...]
    feature_rms: tuple[float, ...]


def save_method_checkpoint(path: Path, method: Method) -> None:
    """Write a method's learned state atomically; write nothing if the method has none.

    Raises:
        OutputError: The file cannot be written.
    """
    if not method.state_dict():
        return
    names = MethodCheckpointMeta.model_fields.keys() - {"method"}
    networks = {name: getattr(method.networks, name) for name in names}
    save_checkpoint(path, method, MethodCheckpointMeta(method=method.config, **networks))


def load_method_checkpoint(path: Path) -> Method:
    """Return a saved method in eval mode, without detectors.

    Raises:
        CheckpointError: The file is missing or damaged, or its weights do not match its header.
    """
    weights, meta = read_checkpoint(path, MethodCheckpointMeta)
    with torch.random.fork_rng(devices=[]):
        method = build_method(meta.method, NetworkPair(**meta.model_dump(exclude={"method"})))
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not match its header ({error})") from error
    return method.eval()
