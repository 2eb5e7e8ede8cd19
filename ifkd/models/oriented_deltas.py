"""Oriented boxes as five deltas of an upright anchor, and the divergence of boxes as Gaussians.

A box of length l, width w and angle t has the symmetric matrix

    M = m·I + d·[[cos 2t, sin 2t], [sin 2t, -cos 2t]],   m = (ln l + ln w)/2,   d = (ln l - ln w)/2,

and exp(M)/2 is the root of the covariance of its Gaussian (Yang et al. 2021). M does not jump where the angle does,
between 180 and 0 degrees, and that of a square does not depend on its angle. For a box at 0 or 90 degrees, M is
diagonal, with the logarithms of its width and height on the screen. So the deltas dx, dy, dw = M_xx - ln(anchor's
width) and dh = M_yy - ln(anchor's height) of an upright box are R-CNN's, and the fifth, M_xy, is 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd.models.box_decoding import MAX_LOG_RATIO, Side

SMALLEST_SIDE_PX = 0.1
"""Shorter sides of labels count as this long; their logarithm is finite."""
MAX_TURN = 2.0
"""Largest |M_xy| in decoding, that of a box 55 times as long as wide at 45 degrees."""
EPSILON = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class _LogShape:
    """The matrix M of boxes as `m` and the two parts of d: d·cos 2t and d·sin 2t."""

    m: Tensor
    along: Tensor
    turned: Tensor

    @classmethod
    def of_deltas(cls, anchors: Tensor, deltas: Tensor) -> "_LogShape":
        extent = (anchors[..., 2:] - anchors[..., :2]).clamp_min(SMALLEST_SIDE_PX)
        sides = deltas[..., 2:4].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_width, log_height = (extent.log() + sides).unbind(-1)
        turned = deltas[..., 4].clamp(-MAX_TURN, MAX_TURN)
        return cls((log_width + log_height) / 2, (log_width - log_height) / 2, turned)

    @property
    def d(self) -> Tensor:
        """Half the logarithm of length over width, with a finite gradient at 0."""
        return (self.along.square() + self.turned.square() + EPSILON**2).sqrt()


def encode_oriented(oriented: Float[Tensor, "n 5"], anchors: Float[Tensor, "n 4"]) -> Float[Tensor, "n 5"]:
    """Return the deltas from anchors to oriented boxes (pixels and degrees)."""
    extent = anchors[:, 2:] - anchors[:, :2]
    shift = (oriented[:, :2] - anchors[:, :2]) / extent - 0.5
    log_length, log_width = oriented[:, 2:4].clamp_min(SMALLEST_SIDE_PX).log().unbind(-1)
    m, d, doubled = (log_length + log_width) / 2, (log_length - log_width) / 2, torch.deg2rad(2 * oriented[:, 4])
    along, turned = d * doubled.cos(), d * doubled.sin()
    sides = torch.stack([m + along, m - along], dim=1) - extent.log()
    return torch.cat([shift, sides, turned[:, None]], dim=1)


def decode_oriented(
    anchors: Float[Tensor, "*shape 4"], deltas: Float[Tensor, "*shape 5"], size: tuple[Side, Side] | None
) -> tuple[Float[Tensor, "*shape 4"], Float[Tensor, "*shape 5"]]:
    """Return envelopes, clipped to the image's `size` (height, width) if it is given, and oriented boxes."""
    shape = _LogShape.of_deltas(anchors, deltas)
    d, along, turned = shape.d, shape.along.abs(), shape.turned.abs()
    # Half the angle of (along, turned), 0 to 45 degrees; without atan2, which ONNX does not have.
    half = torch.atan(turned / (d + along))
    steep = torch.where(shape.along < 0, torch.pi / 2 - half, half)  # 0 to 90 degrees from the x axis
    length, width = (shape.m + d).exp(), (shape.m - d).exp()
    center = anchors[..., :2] + (0.5 + deltas[..., :2]) * (anchors[..., 2:] - anchors[..., :2])
    reach = (
        torch.stack([length * steep.cos() + width * steep.sin(), length * steep.sin() + width * steep.cos()], -1) / 2
    )
    boxes = torch.cat([center - reach, center + reach], dim=-1)
    degrees = torch.rad2deg(steep)
    degrees = torch.where((shape.turned < 0) & (degrees > 0), 180 - degrees, degrees)
    oriented = torch.cat([center, torch.stack([length, width, degrees], dim=-1)], dim=-1)
    if size is not None:
        limit = torch.stack([boxes.new_full((), size[1]), boxes.new_full((), size[0])]).repeat(2)
        boxes = boxes.clamp(torch.zeros_like(limit), limit)
    return boxes, oriented


def gaussian_losses(
    anchors: Float[Tensor, "*shape 4"], deltas: Float[Tensor, "*shape 5"], targets: Float[Tensor, "*shape 5"]
) -> Float[Tensor, "*shape"]:
    """Return 1 - 1/(1 + ln(1 + D)), where D is the divergence of boxes from their targets (Yang et al. 2021)."""
    return 1 - 1 / (1 + gaussian_divergence(anchors, deltas, targets).log1p())


def gaussian_divergence(
    anchors: Float[Tensor, "*shape 4"], deltas: Float[Tensor, "*shape 5"], targets: Float[Tensor, "*shape 5"]
) -> Float[Tensor, "*shape"]:
    """Return the Kullback-Leibler divergence of the Gaussians of boxes from those of their targets, both as deltas.

    With M in closed form, nothing is inverted, and equal boxes have exactly 0: the trace is written by the differences
    of the two boxes, because the large parts of cosh(a)·cosh(b) - sinh(a)·sinh(b)·cos(c) would cancel.
    """
    box, target = _LogShape.of_deltas(anchors, deltas), _LogShape.of_deltas(anchors, targets)
    shift = (deltas[..., :2] - targets[..., :2]) * (anchors[..., 2:] - anchors[..., :2])
    x, y = shift.unbind(-1)
    grown, d, target_d = box.m - target.m, box.d, target.d
    stretch, target_stretch = (2 * d).sinh() / d, (2 * target_d).sinh() / target_d
    # Squared distance of the centers, in deviations of the target.
    squared = x.square() + y.square()
    across = target.along * (x.square() - y.square()) + 2 * target.turned * x * y
    centers = 4 * (-2 * target.m).exp() * ((2 * target_d).cosh() * squared - target_stretch * across)
    moved = (box.along - target.along).square() + (box.turned - target.turned).square()
    turn = (moved - (d - target_d).square()).clamp_min(0.0) / 2
    shapes = 2 * (d - target_d).sinh().square() + stretch * target_stretch * turn
    sizes = torch.expm1(2 * grown) - 2 * grown
    return centers.clamp_min(0.0) / 2 + sizes.clamp_min(0.0) + (2 * grown).exp() * shapes
