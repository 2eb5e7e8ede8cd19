"""Backbones from torchvision with feature maps of stride 4, 8, 16 and 32, and their feature pyramids (FPN)."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ifkd import recipe
from ifkd.models.detector import Images
from ifkd.models.pretrained import load_backbone_weights

STAGES = {
    "resnet50": {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048},
    "resnet18": {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512},
    "mobilenet_v2": {"3": 24, "6": 32, "13": 96, "18": 1280},
}
"""Backbone -> torchvision's name of the last layer of each stage, and its number of channels."""


class StridedDepthwise(nn.Conv2d):
    """MobileNetV2's strided depthwise convolution, in float32 under bfloat16 autocast on a CPU.

    oneDNN's bfloat16 gradient of its input takes 4 to 100 times as long as the float32 one (torch 2.14, AVX-512);
    four such layers would take a third of a training step.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the map in autocast's type."""
        if features.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float()).to(torch.get_autocast_dtype("cpu"))


class Backbone(IntermediateLayerGetter):  # type: ignore[misc]
    """A classification network without its classifier, with torchvision's names; returns the maps of its stages."""

    def __init__(self, config: recipe.DetectorOptions, stages: tuple[int, ...]) -> None:
        """Build the network; `stages` are the indices of the returned maps, 0 (stride 4) to 3 (stride 32).

        Raises:
            CheckpointError: The weights are missing or belong to another network.
        """
        network = torchvision.models.get_model(config.backbone, weights=None)
        report = load_backbone_weights(network, config)
        trunk = network.features if config.backbone == "mobilenet_v2" else network
        for layer in trunk.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride == (2, 2):
                layer.__class__ = StridedDepthwise
        layers = list(STAGES[config.backbone].items())
        super().__init__(trunk, {layers[stage][0]: f"c{stage + 2}" for stage in stages})
        self.report = report
        self.out_channels = [layers[stage][1] for stage in stages]
        self._frozen_norm = config.norm == "frozen"
        frozen = list(self).index(layers[config.frozen_stages - 1][0]) + 1 if config.frozen_stages else 0
        self._frozen_layers = list(self.values())[:frozen]
        for layer in self._frozen_layers:
            layer.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: FBT001, FBT002
        """Set training mode, except for frozen layers."""
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
        for module in [*self._frozen_layers, *(norms if self._frozen_norm else ())]:
            module.eval()
        return self


class CoarseLevels(ExtraFPNBlock):  # type: ignore[misc]
    """P6 from C5 and P7 from P6 by strided convolutions, without a ReLU in between (MMDetection's `on_input`)."""

    def __init__(self, c5_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(c5_channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the pyramid."""
        p6 = _strided_convolution(self.p6, x[-1])
        return [*results, p6, _strided_convolution(self.p7, p6)], [*names, "p6", "p7"]


def _strided_convolution(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a strided convolution, in float32 under CPU autocast if the map is a single pixel (tiles of 64 px).

    oneDNN leaves parts of the bfloat16 gradient of the weights unset for such a map (torch 2.14, AVX-512).
    """
    if torch.is_autocast_enabled("cpu") and features.device.type == "cpu" and features.shape[2:] == (1, 1):
        with torch.autocast("cpu", enabled=False):
            return layer(features.float())
    return layer(features)


class Pyramid(nn.Module):
    """A backbone and its FPN."""

    def __init__(self, body: Backbone, channels: int, extra_blocks: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.out_channels, channels, extra_blocks=extra_blocks)
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Images) -> tuple[Tensor, ...]:
        """Return the pyramid of normalized images, finest level first."""
        return tuple(self.fpn(self.body(images)).values())
