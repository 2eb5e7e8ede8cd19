"""A checkpoint is one safetensors file: weights, and in its header the recipe, the classes and where it came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ifkd import recipe
from ifkd.core.config import Schema
from ifkd.core.errors import CheckpointError
from ifkd.core.files import atomic_path
from ifkd.models import Detector, build_detector

HEADER_KEY = "ifkd"
S = TypeVar("S", bound=Schema)


class CheckpointMeta(Schema):
    """What a checkpoint knows of itself."""

    detector: recipe.DetectorOptions
    classes: tuple[str, ...]
    """Class names by label."""
    category_ids: tuple[int, ...]
    """The training file's category id by label."""
    recipe: recipe.Recipe
    """The effective recipe."""
    provenance: dict[str, Any]
    """Role, method, teacher's digest, data digests, seed, epochs, versions, notes."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights and what is known of them."""

    path: Path
    weights: dict[str, Tensor]
    meta: CheckpointMeta


def save_checkpoint(path: Path, module: nn.Module, meta: Schema) -> None:
    """Write a module's state with what is known of it, atomically.

    Raises:
        OutputError: It cannot be written; a checkpoint that was there stays whole.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_path(path) as temporary:
        # Written by Python, whose OSError says what is wrong: a full disk, say.
        header = {HEADER_KEY: json.dumps(meta.model_dump(mode="json"), sort_keys=True)}
        temporary.write_bytes(save(weights, metadata=header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a detector's checkpoint.

    Raises:
        CheckpointError: It is absent, damaged or was not written by this program.
    """
    return Checkpoint(path, *read_checkpoint(path, CheckpointMeta))


def read_checkpoint(path: Path, schema: type[S]) -> tuple[dict[str, Tensor], S]:
    """Return the weights that `save_checkpoint` wrote, and what is known of them.

    Raises:
        CheckpointError: The file is absent, damaged or was not written by this program, or its header is no `schema`.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            header = (stream.metadata() or {}).get(HEADER_KEY)
            weights = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {path}", hint="Train it first, or check the path.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error})") from error
    if header is None:
        raise CheckpointError(
            f"{path} holds weights but no IFKD header",
            hint="Use a checkpoint written by `ifkd train` or `ifkd distill`.",
        )
    try:
        return weights, schema.model_validate_json(header)
    except ValidationError as error:
        raise CheckpointError(f"The header of {path} does not hold ({error.errors()[0]['msg']})") from error


def build_from(checkpoint: Checkpoint) -> Detector:
    """Return the checkpoint's detector in eval mode.

    Raises:
        CheckpointError: The weights are those of another network.
    """
    config = checkpoint.meta.detector.model_copy(update={"backbone_weights": "none", "weights": "none"})
    detector = build_detector(config, len(checkpoint.meta.classes))
    wanted = detector.state_dict()
    unfit = sorted(
        name
        for name in wanted.keys() | checkpoint.weights.keys()
        if name not in wanted or name not in checkpoint.weights or wanted[name].shape != checkpoint.weights[name].shape
    )
    if unfit:
        raise CheckpointError(
            f"{checkpoint.path} does not fit its own header's {config.backbone} {config.family}",
            got=f"{len(unfit)} tensors absent or of another shape, first {unfit[0]}",
        )
    detector.load_state_dict(checkpoint.weights)
    return detector.eval()
