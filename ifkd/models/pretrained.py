"""Published weights: torchvision's state dicts, fetched or from a file, laid into a network name by name.

Everything that does not fit is told. torchvision's oldest detector files name some convolutions otherwise than its
classes do today; those names are translated, as torchvision does itself.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, RetinaNet_ResNet50_FPN_Weights

from ifkd import recipe
from ifkd.core.errors import CheckpointError
from ifkd.core.files import sha256_of

IMAGENET = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "mobilenet_v2": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
}
"""Backbone -> its classification weights."""
COCO: dict[recipe.Family, Any] = {
    "retinanet": RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "faster_rcnn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
}
"""Family -> its weights with a ResNet-50. torchvision's V2 files are of other networks (deeper heads, group norm)."""
COUNTER = "num_batches_tracked"
"""A batch norm's count of steps, which published detectors lack and nothing here reads."""
BODY = "backbone.body."
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What of a file of weights went into a network, and what did not. Counters of batch norms are left out."""

    source: str
    """File name or path."""
    sha256: str
    loaded: int
    """Tensors that fitted by name and shape."""
    absent: tuple[str, ...]
    """Names of the network that the file lacks; they keep their fresh values."""
    mismatched: tuple[str, ...]
    """Names with another shape in the file, both shapes beside them; they keep their fresh values."""
    unused: tuple[str, ...]
    """Names of the file that the network lacks."""

    def __str__(self) -> str:
        """Return one line, and one more for each tensor that was left out."""
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        for names, what in (
            (self.mismatched, "has another shape, stays fresh"),
            (self.absent, "is not in the file, stays fresh"),
            (self.unused, "is in the file alone"),
        ):
            lines += [f"  {name} {what}" for name in names]
        return "\n".join(lines)

    def to_provenance(self) -> dict[str, Any]:
        """Return the report as a checkpoint's header keeps it."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "loaded": self.loaded,
            "absent": list(self.absent),
            "mismatched": list(self.mismatched),
            "unused": list(self.unused),
        }


def load_backbone_weights(network: nn.Module, config: recipe.DetectorOptions) -> LoadReport | None:
    """Lay the weights a recipe names into a classification network; None when it names none.

    Raises:
        CheckpointError: They are absent, or do not hold the whole network up to its classifier.
    """
    if config.backbone_weights == "none":
        return None
    if config.backbone_weights == "imagenet":
        path = fetched(IMAGENET[config.backbone], f"ImageNet weights of {config.backbone}", "backbone_weights")
    else:
        path = Path(config.backbone_weights)
    state = read_state(path, "backbone_weights")
    report = _load(network, state, path)
    body = [name for name in _unfit(report) if not name.startswith(("fc.", "classifier."))]
    if body:
        raise _other_network(path, config.backbone, body)
    return report


def load_detector_weights(detector: nn.Module, config: recipe.DetectorOptions) -> LoadReport | None:
    """Lay the weights of a torchvision detector into one of ours; None when the recipe names none.

    Heads for other classes do not fit and stay fresh; so does RetinaNet's P6, which is made of C5 here.

    Raises:
        CheckpointError: They are absent, or of a detector with another backbone.
    """
    if config.weights == "none":
        return None
    if config.weights == "coco":
        path = fetched(COCO[config.family], f"COCO weights of {config.family} with resnet50", "weights")
    else:
        path = Path(config.weights)
    report = _load(detector, dict(_renamed(read_state(path, "weights"))), path)
    body = [name for name in _unfit(report) if name.startswith(BODY)]
    if body:
        raise _other_network(path, f"{config.family} with {config.backbone}", body)
    return report


def fetched(weights: Any, what: str, option: str) -> Path:
    """Return the file of one of torchvision's weights, downloaded to torch's cache unless it lies there.

    Raises:
        CheckpointError: It is not there and cannot be fetched; the address and the place are told.
    """
    name = weights.url.rsplit("/", 1)[1]
    place = Path(torch.hub.get_dir()) / "checkpoints" / name
    if place.is_file():
        return place
    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(place), digest[1] if digest else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"The {what} cannot be fetched ({error})",
            hint=f"Download {weights.url} to {place}, or give a path as {option}.",
        ) from error
    return place


def read_state(path: Path, option: str) -> dict[str, Tensor]:
    """Return a state dict from disk; `option` is the recipe's key that named it.

    Raises:
        CheckpointError: The file is absent or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"There are no weights at {path}", hint=f"Check detector.{option}.") from error
    except Exception as error:
        raise CheckpointError(f"{path} is not a torchvision state dict ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} is not a torchvision state dict", got=type(state).__name__, expected="a dict of tensors"
        )
    return state


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> LoadReport:
    known = {name: value for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
    there = {name: value for name, value in state.items() if not name.endswith(COUNTER)}
    fitting = {name: value for name, value in there.items() if name in known and value.shape == known[name].shape}
    shared = sorted((known.keys() & there.keys()) - fitting.keys())
    network.load_state_dict(fitting, strict=False)
    return LoadReport(
        source=str(path),
        sha256=sha256_of(path),
        loaded=len(fitting),
        absent=tuple(sorted(known.keys() - there.keys())),
        mismatched=tuple(f"{name} {_sides(there[name])}, here {_sides(known[name])}" for name in shared),
        unused=tuple(sorted(there.keys() - known.keys())),
    )


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a detector's tensors with the old names of convolutions put into today's form."""
    for name, value in state.items():
        renamed = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
        renamed = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", renamed)
        # Old towers counted their ReLUs as well.
        renamed = re.sub(
            r"^(head\.(?:classification|regression)_head\.conv)\.(\d+)\.(weight|bias)$",
            lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}",
            renamed,
        )
        yield renamed, value


def _unfit(report: LoadReport) -> list[str]:
    return sorted([*report.absent, *(text.split(" ")[0] for text in report.mismatched)])


def _sides(value: Tensor) -> str:
    return "x".join(str(side) for side in value.shape)


def _other_network(path: Path, wanted: str, unfit: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a {wanted}",
        got=f"{len(unfit)} tensors absent or of another shape, first {', '.join(unfit[:NAMES_SHOWN])}",
    )
