"""EDE, external disturbance enhancement: MobileSAM's embedding as an addition to the teacher's features (eqs 1-2)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ifkd.mobile_sam import EMBEDDING_CHANNELS

PROJECTION_SEED = 1


def disturbance(
    embedding: Float[Tensor, "batch channels rows columns"],
    shape: tuple[int, int],
    *,
    interp: Literal["bilinear", "area"] = "bilinear",
    center: bool = False,
) -> Float[Tensor, "batch channels _ _"]:
    """Return phi_EDE of a level: Resize(sigmoid(embedding)), in (0, 1), without gradient (eq. 2).

    Args:
        embedding: MobileSAM's embedding, cut to the image and projected to the pyramid's width.
        shape: (height, width) of the level's map.
        interp: `bilinear` (antialiased when shrinking) or `area` (means of cells).
        center: Subtract 0.5, so that an uninformative embedding adds nothing.
    """
    with torch.no_grad(), torch.autocast(embedding.device.type, enabled=False):
        activation = embedding.float().sigmoid() - (0.5 if center else 0.0)
        if interp == "area":
            return functional.adaptive_avg_pool2d(activation, shape)
        return functional.interpolate(activation, shape, mode="bilinear", align_corners=False, antialias=True)


def width_projection(channels: int) -> Float[Tensor, "channels 256 1 1"] | None:
    """Return the frozen 1x1 projection with orthogonal rows to a pyramid of another width; None at 256.

    It is applied before the sigmoid, and is the same on every machine.
    """
    if channels == EMBEDDING_CHANNELS:
        return None
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    weight = torch.empty(channels, EMBEDDING_CHANNELS)
    return torch.nn.init.orthogonal_(weight, generator=generator).view(channels, EMBEDDING_CHANNELS, 1, 1)
