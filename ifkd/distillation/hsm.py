"""HSM, the hyperbolic similarity mask: where student and teacher differ, measured in the Poincare ball (eqs 9-11).

The ball of curvature c > 0 has radius 1/sqrt(c). Laws: d(x, x) = 0, d is symmetric and obeys the triangle
inequality; (-x) + (x + y) = y; d(exp(u), 0) = 2|u|; for c -> 0, d -> 2|u - v|.

All functions take points along dimension 1, as feature maps have them.
"""

import math

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
    return _tangent_distance(u, v, (_norm(u), _norm(v)), curvature=curvature, scale=u.new_tensor(1.0), clip=math.inf)


def similarity_mask(
    teacher: Float[Tensor, "batch channels height width"],
    student: Float[Tensor, "batch channels height width"],
    config: recipe.HsmOptions,
    *,
    mean_norm: Float[Tensor, ""] | None = None,
) -> Float[Tensor, "batch 1 height width"]:
    """Return M_HSM of a level, the hyperbolic distance at each location, at least 0 (eq. 11 as a map).

    With `scale = auto` both sides are multiplied so that the teacher's mean norm is `target_radius` over sqrt(c);
    a common factor of the mask cancels in the losses, so that the radius alone shapes it.

    Args:
        teacher: Its features.
        student: The student's, adapted.
        config: HSM's settings.
        mean_norm: The teacher's mean norm where this is not the whole batch; by default that of `teacher`.
    """
    learning = torch.is_grad_enabled() and not config.detach
    with torch.autocast(teacher.device.type, enabled=False), torch.set_grad_enabled(learning):
        u, v = teacher.float(), student.float()
        norms = (_norm(u), _norm(v))
        scale = _scale(u, norms[0].mean() if mean_norm is None else mean_norm, config)
        if config.map == "expmap0" and config.formula == "asinh":
            return _tangent_distance(u, v, norms, curvature=config.curvature, scale=scale, clip=config.clip)
        return mobius_distance(_mapped(u * scale, config), _mapped(v * scale, config), curvature=config.curvature)


def in_ball(
    features: Float[Tensor, "n c *m"], config: recipe.HsmOptions, *, mean_norm: Float[Tensor, ""]
) -> Float[Tensor, "n c *m"]:
    """Return where HSM sees features: scaled, cut and mapped into the ball.

    Args:
        features: A network's features.
        config: HSM's settings.
        mean_norm: Of the features whose norms the automatic scale goes by.
    """
    return _mapped(features * _scale(features, mean_norm, config), config)


def _mapped(u: Tensor, config: recipe.HsmOptions) -> Tensor:
    """Return scaled features as points of the ball; `raw` ones stay where they are."""
    u = _clipped(u, config)
    if config.map == "expmap0":
        u = expmap0(u, curvature=config.curvature)
    return u if config.map == "raw" else _projected(u, config.curvature)


def _tangent_distance(
    u: Tensor, v: Tensor, norms: tuple[Tensor, Tensor], *, curvature: float, scale: Tensor, clip: float
) -> Tensor:
    """Return the distance of exp(scale·u) and exp(scale·v), either first shrunk to sqrt(c)·norm <= clip.

    Scale, clip and exponential map are one factor for each location, so that features are multiplied once.
    """
    root = curvature**0.5
    t_u, t_v = ((root * scale * norm).clamp(max=clip) for norm in norms)
    factor_u, factor_v = (_tanh_over(t) * t / (root * norm) for t, norm in zip((t_u, t_v), norms, strict=True))
    difference = factor_u * u
    if difference.requires_grad:
        difference = difference - factor_v * v
    else:
        difference.sub_(factor_v * v)
    gap = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    return 2 / root * torch.asinh(root * gap * t_u.cosh() * t_v.cosh())


def _scale(teacher: Tensor, mean_norm: Tensor, config: recipe.HsmOptions) -> Tensor:
    match config.scale:
        case "auto":
            wanted = config.target_radius / config.curvature**0.5
            return torch.where(mean_norm > SMALLEST_NORM, wanted / mean_norm.clamp_min(SMALLEST_NORM), 1.0)
        case "inv_sqrt_channels":
            return teacher.new_tensor(teacher.shape[1] ** -0.5)
        case _:
            return teacher.new_tensor(1.0)


def _clipped(u: Tensor, config: recipe.HsmOptions) -> Tensor:
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
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


def _tanh_over(t: Tensor) -> Tensor:
    """Return tanh(t)/t, by its series where t is tiny."""
    return torch.where(t < 1e-4, 1 - t.square() / 3, t.tanh() / t.clamp_min(SMALLEST_NORM))
