"""Backbones by name, from torchvision: maps of stride 4, 8, 16 and 32."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from ifkd import recipe
from ifkd.errors import CheckpointError

STAGES = {
    "resnet50": {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048},
    "resnet18": {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512},
    "mobilenet_v2": {"3": 24, "6": 32, "13": 96, "18": 1280},
}
"""Backbone -> torchvision's layer that ends each stage, and its channels."""

IMAGENET = {
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "mobilenet_v2": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
}


class Backbone(IntermediateLayerGetter):  # type: ignore[misc]
    """A classification network up to its last stage, as torchvision names it; calling it gives the stages' maps."""

    def __init__(self, config: recipe.Detector, stages: tuple[int, ...]) -> None:
        """Build the network.

        Args:
            config: Name, weights and what is frozen.
            stages: Which of the four stages to return, 0 (stride 4) to 3 (stride 32).

        Raises:
            CheckpointError: The weights are absent or do not fit.
        """
        network = torchvision.models.get_model(config.backbone, weights=None)
        _load_weights(network, config)
        trunk = network.features if config.backbone == "mobilenet_v2" else network
        layers = list(STAGES[config.backbone].items())
        super().__init__(trunk, {layers[stage][0]: f"c{stage + 2}" for stage in stages})
        self.out_channels = [layers[stage][1] for stage in stages]
        self._frozen_norm = config.norm == "frozen"
        self._frozen_layers = list(self._layers_of_first_stages(layers, config.frozen_stages))
        for layer in self._frozen_layers:
            layer.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: FBT001, FBT002
        """Set training mode, except for what is frozen."""
        super().train(mode)
        for layer in self._frozen_layers:
            layer.eval()
        if self._frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _layers_of_first_stages(self, layers: list[tuple[str, int]], frozen_stages: int) -> Iterator[nn.Module]:
        if frozen_stages == 0:
            return
        last = layers[frozen_stages - 1][0]
        for name, layer in self.items():
            yield layer
            if name == last:
                return


def _load_weights(network: nn.Module, config: recipe.Detector) -> None:
    if config.backbone_weights == "none":
        return
    if config.backbone_weights == "imagenet":
        weights = IMAGENET[config.backbone]
        file_name = weights.url.rsplit("/", 1)[1]
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            place = Path(torch.hub.get_dir()) / "checkpoints" / file_name
            raise CheckpointError(
                f"The ImageNet weights of {config.backbone} cannot be fetched ({error})",
                mend=f"Download {weights.url} to {place}, or give a path as backbone_weights.",
            ) from error
    else:
        state = _read_state(Path(config.backbone_weights))
    known = network.state_dict()
    unfit = sorted(
        name
        for name in known
        if not name.endswith("num_batches_tracked")
        and not name.startswith(("fc.", "classifier."))
        and (name not in state or state[name].shape != known[name].shape)
    )
    if unfit:
        raise CheckpointError(
            f"{config.backbone_weights} is not a {config.backbone}",
            got=f"{len(unfit)} tensors absent or of another shape, first {', '.join(unfit[:5])}",
        )
    network.load_state_dict(
        {name: value for name, value in state.items() if name in known and value.shape == known[name].shape},
        strict=False,
    )


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There are no backbone weights at {path}", mend="Check detector.backbone_weights."
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} is not a torchvision state dict ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} is not a torchvision state dict", got=type(state).__name__, expected="a dict of tensors"
        )
    return state
