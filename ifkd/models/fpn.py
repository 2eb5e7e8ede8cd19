"""Feature pyramids on torchvision's FPN: P3 to P7 for RetinaNet, P2 to P6 for Faster R-CNN."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from ifkd import recipe
from ifkd.models.backbones import Backbone


class CoarseLevels(ExtraFPNBlock):  # type: ignore[misc]
    """P6 from C5 and P7 from P6, without an activation between them (mmdet's `on_input`)."""

    def __init__(self, c5_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(c5_channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the pyramid."""
        p6 = _halved(self.p6, x[-1])
        return [*results, p6, _halved(self.p7, p6)], [*names, "p6", "p7"]


def _halved(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Return a strided convolution's map.

    oneDNN leaves parts of a bfloat16 gradient of the weights unset when the map is a single pixel (torch 2.14 on
    processors with AVX-512), so there, as in tiles of 64 px, the layer stays in float32.
    """
    if torch.is_autocast_enabled("cpu") and features.device.type == "cpu" and features.shape[2:] == (1, 1):
        with torch.autocast("cpu", enabled=False):
            return layer(features.float())
    return layer(features)


class RetinaNetPyramid(nn.Module):
    """Backbone and FPN; strides 8, 16, 32, 64, 128. P6 and P7 are strided convolutions on C5."""

    strides = (8, 16, 32, 64, 128)

    def __init__(self, config: recipe.DetectorOptions) -> None:
        super().__init__()
        self.body = Backbone(config, stages=(1, 2, 3))
        coarse = CoarseLevels(self.body.out_channels[-1], config.channels)
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, config.channels, extra_blocks=coarse)
        _init_fpn(self.fpn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return P3 to P7 of normalized images."""
        maps: OrderedDict[str, Tensor] = self.fpn(self.body(images))
        return tuple(maps.values())


class FasterRcnnPyramid(nn.Module):
    """Backbone and FPN; strides 4, 8, 16, 32, 64. P6 is every other cell of P5."""

    strides = (4, 8, 16, 32, 64)

    def __init__(self, config: recipe.DetectorOptions) -> None:
        super().__init__()
        self.body = Backbone(config, stages=(0, 1, 2, 3))
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, config.channels, extra_blocks=LastLevelMaxPool())
        _init_fpn(self.fpn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return P2 to P6 of normalized images."""
        maps: OrderedDict[str, Tensor] = self.fpn(self.body(images))
        return tuple(maps.values())


def _init_fpn(fpn: nn.Module) -> None:
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
