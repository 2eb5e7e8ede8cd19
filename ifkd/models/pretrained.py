"""Pretrained weights: torchvision's state dicts, downloaded or from a file.

Matching tensors are loaded; the others are logged and keep their initial values. torchvision's oldest detector files
name some convolutions differently than its classes do today; these names are translated, as torchvision does itself.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, RetinaNet_ResNet50_FPN_Weights

from ifkd import recipe
from ifkd.core.errors import CheckpointError
from ifkd.core.files import sha256_of

COCO: dict[recipe.Family, Any] = {
    "retinanet": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "faster_rcnn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
}
"""Family -> its weights with a ResNet-50. torchvision's V2 files are of other networks (deeper heads, group norm)."""
COUNTER = "num_batches_tracked"
"""A batch norm's step counter; published detectors lack it, and it is not used."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Result of loading a file of weights into a network. Step counters of batch norms are left out."""

    source: str
    """File name or path."""
    sha256: str
    loaded: int
    """Number of tensors that match in name and shape."""
    missing: tuple[str, ...]
    """Names of the network that are not in the file."""
    mismatched: tuple[str, ...]
    """Names whose shapes differ, with both shapes."""
    unexpected: tuple[str, ...]
    """Names of the file that are not in the network."""

    def __str__(self) -> str:
        """Return one line, and one for each tensor that was not loaded."""
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        lines += [f"  {name} has another shape and keeps its initial values" for name in self.mismatched]
        lines += [f"  {name} is missing from the file and keeps its initial values" for name in self.missing]
        return "\n".join([*lines, *(f"  {name} is not in the network" for name in self.unexpected)])

    def to_provenance(self) -> dict[str, Any]:
        """Return the report for a checkpoint's header."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def load_backbone_weights(network: nn.Module, config: recipe.DetectorOptions) -> LoadReport | None:
    """Load the weights that a recipe names into a classification network; None if it names none.

    Raises:
        CheckpointError: The weights are missing, or do not match the network up to its classifier.
    """
    if config.backbone_weights == "none":
        return None
    path = Path(config.backbone_weights)
    if config.backbone_weights == "imagenet":
        weights: Any = torchvision.models.get_model_weights(config.backbone)
        path = download_weights(weights.IMAGENET1K_V1, f"ImageNet weights of {config.backbone}", "backbone_weights")
    report = _load(network, read_state_dict(path, "backbone_weights"), path)
    _check_loaded(report, r"(?!fc\.|classifier\.)", config.backbone)
    return report


def load_detector_weights(detector: nn.Module, config: recipe.DetectorOptions) -> LoadReport | None:
    """Load the weights of a torchvision detector into one of ours; None if the recipe names none.

    Heads for other classes do not match and keep their initial values, as does RetinaNet's P6, which is computed from
    C5 here.

    Raises:
        CheckpointError: The weights are missing, or belong to a detector with another backbone.
    """
    if config.weights == "none":
        return None
    path = Path(config.weights)
    if config.weights == "coco":
        path = download_weights(COCO[config.family], f"COCO weights of {config.family} with resnet50", "weights")
    state = {_todays_name(name): value for name, value in read_state_dict(path, "weights").items()}
    report = _load(detector, state, path)
    _check_loaded(report, r"backbone\.body\.", f"{config.family} with {config.backbone}")
    return report


def download_weights(weights: Any, description: str, option: str) -> Path:
    """Return the file of torchvision's `weights` in torch's cache; download it if it is missing.

    Raises:
        CheckpointError: The download fails; the message has the address and the destination.
    """
    name = weights.url.rsplit("/", 1)[1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), digest[1] if digest else None, progress=False)
    except (OSError, RuntimeError) as error:
        hint = f"Download {weights.url} to {path}, or set a path as {option}."
        raise CheckpointError(f"The {description} cannot be downloaded ({error})", hint=hint) from error
    return path


def read_state_dict(path: Path, option: str) -> dict[str, Tensor]:
    """Read a state dict; `option` is the recipe's key that names it.

    Raises:
        CheckpointError: The file is missing or is not a state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"There are no weights at {path}", hint=f"Check detector.{option}.") from error
    except Exception as error:
        raise CheckpointError(f"{path} is not a torchvision state dict ({error})") from error
    if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
        return state
    got = type(state).__name__
    raise CheckpointError(f"{path} is not a torchvision state dict", got=got, expected="a dict of tensors")


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> LoadReport:
    own = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
    given = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    matching = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    mismatched = sorted((own.keys() & given.keys()) - matching.keys())
    network.load_state_dict(matching, strict=False)
    return LoadReport(
        source=str(path),
        sha256=sha256_of(path),
        loaded=len(matching),
        missing=tuple(sorted(own.keys() - given.keys())),
        mismatched=tuple(f"{name} {_shape(given[name])}, here {_shape(own[name])}" for name in mismatched),
        unexpected=tuple(sorted(given.keys() - own.keys())),
    )


def _todays_name(name: str) -> str:
    """Return a detector tensor's name with the old name of a convolution replaced by today's."""
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
    # In old names the ReLUs of a tower are counted as well.
    old_tower = r"^(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)$"
    return re.sub(old_tower, lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}", name)


def _check_loaded(report: LoadReport, required: str, network: str) -> None:
    """Refuse weights of which a tensor with a `required` name (a regular expression) was not loaded."""
    not_loaded = sorted([*report.missing, *(text.split(" ")[0] for text in report.mismatched)])
    names = [name for name in not_loaded if re.match(required, name)]
    if names:
        got = f"{len(names)} tensors missing or of another shape, first {', '.join(names[:5])}"
        raise CheckpointError(f"{report.source} is not a {network}", got=got)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
