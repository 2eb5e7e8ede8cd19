"""RetinaNet's feature pyramid: P3 to P5 by torchvision's FPN, P6 and P7 by strided convolutions on C5."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ifkd import recipe
from ifkd.detectors.backbones import Backbone


class CoarseLevels(ExtraFPNBlock):  # type: ignore[misc]
    """P6 from C5 and P7 from P6, without an activation between them (mmdet's `on_input`)."""

    def __init__(self, c5_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(c5_channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the pyramid."""
        p6 = self.p6(x[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


class RetinaNetPyramid(nn.Module):
    """Backbone and FPN; strides 8, 16, 32, 64, 128."""

    strides = (8, 16, 32, 64, 128)

    def __init__(self, config: recipe.Detector) -> None:
        super().__init__()
        self.body = Backbone(config, stages=(1, 2, 3))
        coarse = CoarseLevels(self.body.out_channels[-1], config.channels)
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, config.channels, extra_blocks=coarse)
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return P3 to P7 of normalised images."""
        maps: OrderedDict[str, Tensor] = self.fpn(self.body(images))
        return tuple(maps.values())
