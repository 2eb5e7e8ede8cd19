"""Checkpoints: one safetensors file with weights, whose header has the recipe, the classes and the provenance."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ifkd import recipe
from ifkd.core.config import EARLIER_VERSION, Schema
from ifkd.core.errors import CheckpointError
from ifkd.core.files import atomic_path
from ifkd.models import Detector, build_detector

HEADER_KEY = "ifkd"
S = TypeVar("S", bound=Schema)


class RunMeta(Schema):
    """Metadata in the header of the checkpoints of every training run."""

    recipe: recipe.Recipe
    """The effective recipe."""
    provenance: dict[str, Any]
    """Role, method, digest of the teacher, digests of the data, seed, epochs, versions and notes."""


class CheckpointMeta(RunMeta):
    """Metadata in the header of a detector's checkpoint."""

    detector: recipe.DetectorOptions
    classes: tuple[str, ...]
    """Class names by label."""
    category_ids: tuple[int, ...]
    """Category id in the training file, by label."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights and metadata of a detector."""

    path: Path
    weights: dict[str, Tensor]
    meta: CheckpointMeta


def save_checkpoint(path: Path, module: nn.Module, meta: Schema) -> None:
    """Write a module's state and its metadata atomically.

    Raises:
        OutputError: The file cannot be written; an existing checkpoint is left unchanged.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        # Written by Python, because its OSError states the cause, such as a full disk.
        header = {HEADER_KEY: json.dumps(meta.model_dump(mode="json"), sort_keys=True)}
        temporary.write_bytes(save(weights, metadata=header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a detector's checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged or was not written by IFKD.
    """
    return Checkpoint(path, *read_checkpoint(path, CheckpointMeta))


def read_checkpoint(path: Path, schema: type[S]) -> tuple[dict[str, Tensor], S]:
    """Return the weights and metadata that `save_checkpoint` wrote.

    Raises:
        CheckpointError: The file is missing, damaged or was not written by IFKD, or its header is not a `schema`.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            header = (stream.metadata() or {}).get(HEADER_KEY)
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}", hint="Train it first, or check the path.") from error
    except (SafetensorError, OSError) as error:
        expected = "best.safetensors of `ifkd train` or `ifkd distill`"
        raise CheckpointError(f"{path} is not a complete safetensors file ({error})", expected=expected) from error
    if header is None:
        hint = "Use a checkpoint written by `ifkd train` or `ifkd distill`."
        raise CheckpointError(f"{path} has weights but no IFKD header", hint=hint)
    try:
        return weights, schema.model_validate_json(header)
    except ValidationError as error:
        if error.errors()[0]["type"] == EARLIER_VERSION:
            hint = "Train again, or use the version of ifkd that wrote the checkpoint."
            raise CheckpointError(f"The recipe in {path} has keys of an earlier version", hint=hint) from error
        raise CheckpointError(f"The header of {path} is invalid ({error.errors()[0]['msg']})") from error


def build_from(checkpoint: Checkpoint) -> Detector:
    """Return the checkpoint's detector in eval mode.

    Raises:
        CheckpointError: The weights belong to another network.
    """
    config = checkpoint.meta.detector.model_copy(update={"backbone_weights": "none", "weights": "none"})
    detector = build_detector(config, len(checkpoint.meta.classes))
    expected = {name: value.shape for name, value in detector.state_dict().items()}
    found = {name: value.shape for name, value in checkpoint.weights.items()}
    mismatched = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if mismatched:
        problem = f"The weights in {checkpoint.path} do not match the {config.backbone} {config.family} in its header"
        got = f"{len(mismatched)} tensors missing or of another shape, first {mismatched[0]}"
        raise CheckpointError(problem, got=got)
    detector.load_state_dict(checkpoint.weights)
    return detector.eval()
