"""Backbones from torchvision with feature maps of stride 4, 8, 16 and 32."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from ifkd import recipe
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
        self._frozen_layers = list(self)[:frozen]  # names, because synchronized batch norm replaces the stem's layer
        for name in self._frozen_layers:
            self[name].requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: FBT001, FBT002
        """Set training mode, except for frozen layers."""
        super().train(mode)
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]
        for module in [*(self[name] for name in self._frozen_layers), *(norms if self._frozen_norm else ())]:
            module.eval()
        return self
