"""EDE, external disturbance enhancement: MobileSAM's embedding as an addition to the teacher's features (eqs 1-2)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ifkd.models.mobile_sam.encoder import EMBEDDING_CHANNELS

PROJECTION_SEED = 1
Interp = Literal["bilinear", "area"]


def disturbance(
    embedding: Float[Tensor, "batch channels rows columns"],
    shape: tuple[int, int],
    *,
    interp: Interp = "bilinear",
    center: bool = False,
) -> Float[Tensor, "batch channels _ _"]:
    """Return phi_EDE of a level: Resize(sigmoid(embedding)), in (0, 1), without gradient (eq. 2).

    Args:
        embedding: MobileSAM's embedding, cut to the image and projected to the pyramid's width; or its mask's logits.
        shape: (height, width) of the level's map.
        interp: `bilinear` (antialiased when shrinking) or `area` (means of cells).
        center: Subtract 0.5, so that an uninformative embedding adds nothing.
    """
    return resized(activation(embedding, center=center), shape, interp=interp)


@torch.no_grad()
def activation(
    embedding: Float[Tensor, "batch channels rows columns"], *, center: bool = False
) -> Float[Tensor, "batch channels rows columns"]:
    """Return the embedding's sigmoid in float32, less 0.5 when centerd; one map serves all levels."""
    share = embedding.float().sigmoid()
    return share.sub_(0.5) if center else share


@torch.no_grad()
def resized(
    active: Float[Tensor, "batch channels rows columns"], shape: tuple[int, int], *, interp: Interp
) -> Float[Tensor, "batch channels _ _"]:
    """Return an activation at a level's size."""
    with torch.autocast(active.device.type, enabled=False):
        if interp == "area":
            return functional.adaptive_avg_pool2d(active, shape)
        return functional.interpolate(active, shape, mode="bilinear", align_corners=False, antialias=True)


class EdeGate(nn.Module):
    """The released code's other way to disturb: features times phi_EDE, and two convolutions that learn."""

    def __init__(self, channels: int, *, residual: bool) -> None:
        """Make the convolutions.

        Args:
            channels: Width of the features.
            residual: Add the features to the result.
        """
        super().__init__()
        self.generation = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self._residual = residual

    def forward(
        self, features: Float[Tensor, "batch channels height width"], share: Float[Tensor, "batch _ height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the features, gated by `share` and generated anew, in float32."""
        generated: Tensor = self.generation(features * share).float()
        return generated + features if self._residual else generated


def width_projection(channels: int) -> Float[Tensor, "channels 256 1 1"] | None:
    """Return the frozen 1x1 projection with orthogonal rows to a pyramid of another width; None at 256.

    It is applied before the sigmoid, and is the same on every machine.
    """
    if channels == EMBEDDING_CHANNELS:
        return None
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    weight = torch.empty(channels, EMBEDDING_CHANNELS)
    return torch.nn.init.orthogonal_(weight, generator=generator).view(channels, EMBEDDING_CHANNELS, 1, 1)
