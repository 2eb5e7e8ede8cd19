"""HSM, the hyperbolic similarity mask: distance of student and teacher in the Poincare ball (eqs 9-11).

The ball of curvature c > 0 has radius 1/sqrt(c). Properties: d(x, x) = 0, d is symmetric and obeys the triangle
inequality; (-x) + (x + y) = y; d(exp(u), 0) = 2|u|; for c -> 0, d -> 2|u - v|. Points are vectors along dimension 1.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ifkd import recipe
from ifkd.models.detector import FeatureMap, LocationMap, Scalar

SMALLEST_NORM = 1e-12
BALL_MARGIN = 1e-3
"""Relative distance from the ball's border at which `project` clips points."""
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
    u: Float[Tensor, "n c *m"],
    v: Float[Tensor, "n c *m"],
    *,
    curvature: float,
    scale: Scalar | None = None,
    clip: float = math.inf,
    norm_u: Float[Tensor, "n 1 *m"] | None = None,
) -> Float[Tensor, "n 1 *m"]:
    """Return d(exp(scale·u), exp(scale·v)) of tangent vectors, each first clipped to sqrt(c)·norm <= `clip`.

    With the lengths t = sqrt(c)·norm and the angle a between u and v,

        d = 2/sqrt(c)·asinh(sqrt(sinh²(t_u - t_v) + sinh(2·t_u)·sinh(2·t_v)·sin²(a/2)))

    equals the Moebius form (eq. 10). It is exactly 0 for equal points, and precise near the border, where float32
    does not distinguish points of the ball. `norm_u` is the norm of `u`, if it is already known.
    """
    root = curvature**0.5
    scale = u.new_tensor(1.0) if scale is None else scale
    norms = (_norm(u) if norm_u is None else norm_u, _norm(v))
    t_u, t_v = ((root * scale * norm).clamp(max=clip) for norm in norms)
    difference = u / norms[0]
    if torch.is_grad_enabled() and (u.requires_grad or v.requires_grad):
        difference = difference - v / norms[1]
    else:
        difference.sub_(v / norms[1])
    half_chord = torch.linalg.vector_norm(difference, dim=1, keepdim=True) / 2
    across = half_chord * ((2 * t_u).sinh() * (2 * t_v).sinh()).sqrt()
    # A vector of length 0 has no direction.
    has_direction = [norm > SMALLEST_NORM for norm in norms]
    along = torch.where(has_direction[0], t_u, 0.0) - torch.where(has_direction[1], t_v, 0.0)
    parts = torch.cat([along.sinh(), torch.where(has_direction[0] & has_direction[1], across, 0.0)], dim=1)
    return 2 / root * torch.linalg.vector_norm(parts, dim=1, keepdim=True).asinh()


def similarity_mask(
    teacher: FeatureMap, student: FeatureMap, config: recipe.HsmOptions, *, mean_norm: Scalar | None = None
) -> LocationMap:
    """Return M_HSM of a level, the hyperbolic distance at each location, at least 0 (eq. 11 as a map), to `power`.

    With `scale = "auto"` both sides are scaled so that the teacher's mean norm is `target_radius` over sqrt(c).
    `mean_norm` is that norm over all ranks, by default that of `teacher`; `student` is adapted.
    """
    learning = torch.is_grad_enabled() and not config.detach
    with torch.autocast(teacher.device.type, enabled=False), torch.set_grad_enabled(learning):
        u, v = teacher.float(), student.float()
        norm = _norm(u)
        scale = _scale(u, norm.mean() if mean_norm is None else mean_norm, config)
        if config.map == "expmap0" and config.formula == "asinh":
            clip = config.largest_norm
            mask = tangent_distance(u, v, curvature=config.curvature, scale=scale, clip=clip, norm_u=norm)
        else:
            points = (_to_ball(side * scale, config) for side in (u, v))
            mask = mobius_distance(*points, curvature=config.curvature)
        return mask if config.power == 1 else mask**config.power


def in_ball(
    features: Float[Tensor, "n c *m"], config: recipe.HsmOptions, *, mean_norm: Scalar
) -> Float[Tensor, "n c *m"]:
    """Return features as points of the ball as in HSM; `mean_norm` is the teacher's, for the automatic scale."""
    return _to_ball(features * _scale(features, mean_norm, config), config)


def _to_ball(u: Tensor, config: recipe.HsmOptions) -> Tensor:
    """Return scaled features as points of the ball; `raw` features are returned unchanged."""
    if config.map == "raw":
        return u
    t = config.curvature**0.5 * _norm(u)
    u = u * (config.largest_norm / t.clamp_min(config.largest_norm))
    if config.map == "expmap0":
        u = expmap0(u, curvature=config.curvature)
    limit = (1 - BALL_MARGIN) / config.curvature**0.5
    return u * (limit / _norm(u).clamp_min(limit))


def _scale(teacher: Tensor, mean_norm: Tensor, config: recipe.HsmOptions) -> Tensor:
    if config.scale == "auto":
        radius = config.target_radius / config.curvature**0.5
        return torch.where(mean_norm > SMALLEST_NORM, radius / mean_norm.clamp_min(SMALLEST_NORM), 1.0)
    return teacher.new_tensor(teacher.shape[1] ** -0.5 if config.scale == "inv_sqrt_channels" else 1.0)


def _norm(x: Tensor) -> Tensor:
    """Return norms along dimension 1, with finite gradients at 0."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


def _tanh_over(t: Tensor) -> Tensor:
    """Return tanh(t)/t, by its series where t is small."""
    return torch.where(t < 1e-4, 1 - t.square() / 3, t.tanh() / t.clamp_min(SMALLEST_NORM))
