"""HSM, the hyperbolic similarity mask: where student and teacher differ, measured in the Poincare ball (eqs 9-11).

The ball of curvature c > 0 has radius 1/sqrt(c). Laws: d(x, x) = 0, d is symmetric and obeys the triangle
inequality; (-x) + (x + y) = y; d(exp(u), 0) = 2|u|; for c -> 0, d -> 2|u - v|.

All functions take points along dimension 1, as feature maps have them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd import recipe

SMALLEST_NORM = 1e-12
BALL_MARGIN = 1e-3
"""`project` keeps points this far, relatively, from the ball's border."""
ARTANH_LIMIT = 1 - 1e-5


def mobius_add(x: Float[Tensor, "n c *m"], y: Float[Tensor, "n c *m"], *, curvature: float) -> Float[Tensor, "n c *m"]:
    """Return the Moebius sum of points of the ball (eq. 9, with the paper's e read as c)."""
    c = curvature
    xy = (x * y).sum(dim=1, keepdim=True)
    xx = x.square().sum(dim=1, keepdim=True)
    yy = y.square().sum(dim=1, keepdim=True)
    numerator = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    return numerator / (1 + 2 * c * xy + c**2 * xx * yy)


def expmap0(u: Float[Tensor, "n c *m"], *, curvature: float) -> Float[Tensor, "n c *m"]:
    """Return the exponential map at the origin: tanh(t)·u/t with t = sqrt(c)·|u|."""
    t = curvature**0.5 * _norm(u)
    return _tanh_over(t) * u


def mobius_distance(
    x: Float[Tensor, "n c *m"], y: Float[Tensor, "n c *m"], *, curvature: float
) -> Float[Tensor, "n 1 *m"]:
    """Return d(x, y) = 2/sqrt(c)·artanh(sqrt(c)·|(-x) + y|) of points of the ball (eq. 10, with the minus)."""
    root = curvature**0.5
    norm = mobius_add(-x, y, curvature=curvature).norm(dim=1, keepdim=True)
    return 2 / root * (root * norm).clamp(max=ARTANH_LIMIT).atanh()


def tangent_distance(
    u: Float[Tensor, "n c *m"], v: Float[Tensor, "n c *m"], *, curvature: float
) -> Float[Tensor, "n 1 *m"]:
    """Return d(exp(u), exp(v)) without leaving the tangent space's numerical comfort.

    d = 2/sqrt(c)·asinh(sqrt(c)·|p - q|·cosh(t_u)·cosh(t_v)), which equals the Moebius form, has no singularity at
    the border, and is exactly 0 for equal points.
    """
    root = curvature**0.5
    t_u, t_v = root * _norm(u), root * _norm(v)
    gap = (_tanh_over(t_u) * u - _tanh_over(t_v) * v).norm(dim=1, keepdim=True)
    return 2 / root * torch.asinh(root * gap * t_u.cosh() * t_v.cosh())


def similarity_mask(
    teacher: Float[Tensor, "batch channels height width"],
    student: Float[Tensor, "batch channels height width"],
    config: recipe.Similarity,
) -> Float[Tensor, "batch 1 height width"]:
    """Return M_HSM of a level, the hyperbolic distance at each location, at least 0 (eq. 11 as a map).

    With `scale = auto` both sides are multiplied so that the teacher's mean norm is `target_radius` over sqrt(c);
    a common factor of the mask cancels in the losses, so that the radius alone shapes it.
    """
    if config.detach:
        teacher, student = teacher.detach(), student.detach()
    with torch.autocast(teacher.device.type, enabled=False):
        u, v = teacher.float(), student.float()
        scale = _scale(u, config)
        u, v = _clipped(u * scale, config), _clipped(v * scale, config)
        if config.map == "expmap0" and config.formula == "asinh":
            return tangent_distance(u, v, curvature=config.curvature)
        if config.map == "expmap0":
            u, v = expmap0(u, curvature=config.curvature), expmap0(v, curvature=config.curvature)
        if config.map != "raw":
            u, v = _projected(u, config.curvature), _projected(v, config.curvature)
        return mobius_distance(u, v, curvature=config.curvature)


def _scale(teacher: Tensor, config: recipe.Similarity) -> Tensor:
    match config.scale:
        case "auto":
            mean_norm = teacher.norm(dim=1).mean()
            wanted = config.target_radius / config.curvature**0.5
            return torch.where(mean_norm > SMALLEST_NORM, wanted / mean_norm.clamp_min(SMALLEST_NORM), 1.0)
        case "inv_sqrt_channels":
            return teacher.new_tensor(teacher.shape[1] ** -0.5)
        case _:
            return teacher.new_tensor(1.0)


def _clipped(u: Tensor, config: recipe.Similarity) -> Tensor:
    """Return u shrunk to sqrt(c)·|u| <= clip; raw points are left alone."""
    if config.map == "raw":
        return u
    t = config.curvature**0.5 * _norm(u)
    return u * (config.clip / t.clamp_min(config.clip))


def _projected(x: Tensor, curvature: float) -> Tensor:
    limit = (1 - BALL_MARGIN) / curvature**0.5
    return x * (limit / _norm(x).clamp_min(limit))


def _norm(x: Tensor) -> Tensor:
    """Return norms along dimension 1, with finite gradients at 0."""
    return x.square().sum(dim=1, keepdim=True).clamp_min(SMALLEST_NORM**2).sqrt()


def _tanh_over(t: Tensor) -> Tensor:
    """Return tanh(t)/t, by its series where t is tiny."""
    return torch.where(t < 1e-4, 1 - t.square() / 3, t.tanh() / t.clamp_min(SMALLEST_NORM))
