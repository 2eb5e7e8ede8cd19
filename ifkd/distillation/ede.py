"""EDE, external disturbance enhancement: MobileSAM's embedding is added to the teacher's features (eqs 1-2).

The disturbance of a level is phi_EDE = Resize(sigmoid(embedding)): `resize(activate(embedding), shape)`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd.models.detector import FeatureMap
from ifkd.models.mobile_sam.encoder import EMBEDDING_CHANNELS

PROJECTION_SEED = 1
Interp = Literal["bilinear", "area"]


@torch.no_grad()
def activate(
    embedding: Float[Tensor, "batch channels rows columns"], *, center: bool = False
) -> Float[Tensor, "batch channels rows columns"]:
    """Return the sigmoid of MobileSAM's embedding or mask logits in float32, in (0, 1); minus 0.5 with `center`."""
    activation = embedding.float().sigmoid()
    return activation.sub_(0.5) if center else activation


@torch.no_grad()
def resize(
    activation: Float[Tensor, "batch channels rows columns"], shape: tuple[int, int], *, interp: Interp = "bilinear"
) -> Float[Tensor, "batch channels _ _"]:
    """Return an activation at a level's (height, width): bilinear with antialiasing, or means of cells (`area`)."""
    with torch.autocast(activation.device.type, enabled=False):
        if interp == "area":
            return functional.adaptive_avg_pool2d(activation, shape)
        return functional.interpolate(activation, shape, mode="bilinear", align_corners=False, antialias=True)


class EdeGate(nn.Module):
    """The released code's variant: features times the disturbance, then two learned convolutions."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        """Create the convolutions; `residual` adds the features to the result."""
        super().__init__()
        self.generation = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self._residual = residual

    def forward(self, features: FeatureMap, disturbance: Float[Tensor, "batch _ height width"]) -> FeatureMap:
        """Return the gated and generated features in float32."""
        generated: Tensor = self.generation(features * disturbance).float()
        return generated + features if self._residual else generated


def width_projection(channels: int) -> Float[Tensor, "channels 256 1 1"] | None:
    """Return the fixed 1x1 projection, with orthogonal rows, of the embedding to a pyramid of `channels`; None at 256.

    It is applied before the sigmoid and is equal on all machines.
    """
    if channels == EMBEDDING_CHANNELS:
        return None
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    weight = torch.empty(channels, EMBEDDING_CHANNELS)
    return torch.nn.init.orthogonal_(weight, generator=generator).view(channels, EMBEDDING_CHANNELS, 1, 1)
