"""Feature pyramid network (FPN) on a backbone: levels P3 to P7 or P2 to P6."""

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ifkd import recipe
from ifkd.models.backbones import Backbone
from ifkd.models.detector import Images


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

    def __init__(self, body: Backbone, config: recipe.DetectorOptions, extra_blocks: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        norm = nn.BatchNorm2d if config.pyramid_norm == "batch" else None
        self.fpn = FeaturePyramidNetwork(body.out_channels, config.channels, extra_blocks=extra_blocks, norm_layer=norm)
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Images) -> tuple[Tensor, ...]:
        """Return the pyramid of normalized images, finest level first."""
        return tuple(self.fpn(self.body(images)).values())
