"""HSM: properties of the Poincare ball, in float64 where rounding could hide a wrong formula."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ifkd import recipe
from ifkd.distillation.hsm import expmap0, mobius_add, mobius_distance, similarity_mask, tangent_distance

SHAPES = ((1, 1), (2, 3), (7, 11), (13, 21), (25, 42), (101, 67))
CURVATURES = (1.0, 0.1, 0.01, 1 / 256)

seeds = st.integers(0, 2**31)
curvatures = st.sampled_from(CURVATURES)
shapes = st.sampled_from(SHAPES)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tangents(seed: int, count: int, curvature: float, *, longest: float = 2.3) -> list[Tensor]:
    """Return sets of 12 tangent vectors of 6 dimensions with sqrt(c)·|u| between 0 and `longest`, float64."""
    source = generator(seed)
    found = []
    for _ in range(count):
        direction = torch.nn.functional.normalize(torch.randn(12, 6, generator=source, dtype=torch.float64), dim=1)
        length = torch.rand(12, 1, generator=source, dtype=torch.float64) * longest / math.sqrt(curvature)
        found.append(direction * length)
    return found


def maps(seed: int, shape: tuple[int, int], *, channels: int = 5, batch: int = 2) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    size = (batch, channels, *shape)
    return torch.randn(size, generator=source), torch.randn(size, generator=source)


@given(seed=seeds, c=curvatures)
def test_distance_is_a_metric(seed: int, c: float) -> None:
    u, v, w = tangents(seed, 3, c)
    x, y, z = (expmap0(t, curvature=c) for t in (u, v, w))
    xy, yx = mobius_distance(x, y, curvature=c), mobius_distance(y, x, curvature=c)
    torch.testing.assert_close(xy, yx, rtol=1e-12, atol=1e-12)
    assert (xy > 0).all()
    assert (tangent_distance(u, u.clone(), curvature=c) == 0).all()
    assert mobius_distance(x, x, curvature=c).max() < 1e-12 / math.sqrt(c)
    through = mobius_distance(x, z, curvature=c) + mobius_distance(z, y, curvature=c)
    assert (xy <= through + 1e-10).all()


@given(seed=seeds, c=curvatures)
def test_mobius_sum_has_a_neutral_element_inverses_and_left_cancellation(seed: int, c: float) -> None:
    # The rounding error depends on the distance to the border: 1 - c|x|^2 is about 0.04 at 2.3.
    x, y = (expmap0(t, curvature=c) for t in tangents(seed, 2, c))
    zero = torch.zeros_like(x)
    torch.testing.assert_close(mobius_add(zero, x, curvature=c), x, rtol=0, atol=0)
    torch.testing.assert_close(mobius_add(x, zero, curvature=c), x, rtol=1e-14, atol=0)
    assert mobius_add(-x, x, curvature=c).abs().max() < 1e-12 / math.sqrt(c)
    canceled = mobius_add(-x, mobius_add(x, y, curvature=c), curvature=c)
    torch.testing.assert_close(canceled, y, rtol=1e-10, atol=1e-10)


@given(seed=seeds, c=curvatures)
def test_mobius_sum_stays_in_the_ball(seed: int, c: float) -> None:
    x, y = (expmap0(t, curvature=c) for t in tangents(seed, 2, c))
    assert (mobius_add(x, y, curvature=c).norm(dim=1) * math.sqrt(c) < 1).all()


@given(seed=seeds, c=curvatures)
def test_distance_to_the_origin_is_twice_the_tangent_length(seed: int, c: float) -> None:
    (u,) = tangents(seed, 1, c)
    length = 2 * u.norm(dim=1, keepdim=True)
    zero = torch.zeros_like(u)
    torch.testing.assert_close(mobius_distance(expmap0(u, curvature=c), zero, curvature=c), length, rtol=1e-10, atol=0)
    torch.testing.assert_close(tangent_distance(u, zero, curvature=c), length, rtol=1e-12, atol=0)


@given(seed=seeds)
def test_flat_limit_is_the_euclidean_distance(seed: int) -> None:
    source = generator(seed)
    u, v = (torch.randn(8, 256, generator=source, dtype=torch.float64) for _ in range(2))
    euclidean = 2 * (u - v).norm(dim=1, keepdim=True)
    # The first correction is of order c·|u|^2, here 2.6e-6.
    torch.testing.assert_close(tangent_distance(u, v, curvature=1e-8), euclidean, rtol=3e-6, atol=0)
    torch.testing.assert_close(tangent_distance(u, v, curvature=1e-10), euclidean, rtol=3e-8, atol=0)
    curved = tangent_distance(u, v, curvature=1e-2)
    assert ((curved - euclidean).abs() / euclidean > 1e-2).all()


@given(seed=seeds, c=curvatures)
def test_both_forms_of_the_distance_agree(seed: int, c: float) -> None:
    u, v = tangents(seed, 2, c)
    by_mobius = mobius_distance(expmap0(u, curvature=c), expmap0(v, curvature=c), curvature=c)
    torch.testing.assert_close(tangent_distance(u, v, curvature=c), by_mobius, rtol=1e-12, atol=1e-12)


@given(seed=seeds, c=curvatures, factor=st.floats(0.1, 10))
def test_scaling_the_points_is_scaling_the_curvature(seed: int, c: float, factor: float) -> None:
    x, y = (expmap0(t, curvature=c) for t in tangents(seed, 2, c))
    smaller = c / factor**2
    scaled = mobius_distance(factor * x, factor * y, curvature=smaller)
    torch.testing.assert_close(scaled, factor * mobius_distance(x, y, curvature=c), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("scale", ["auto", "none", "inv_sqrt_channels"])
@pytest.mark.parametrize(("form", "formula"), [("expmap0", "asinh"), ("expmap0", "mobius"), ("project", "mobius")])
def test_mask_is_finite_at_any_size(size: float, scale: str, form: str, formula: str) -> None:
    teacher, student = maps(0, (4, 3), channels=16)
    config = recipe.HsmOptions(scale=scale, map=form, formula=formula)
    mask = similarity_mask(size * teacher, size * student, config)
    assert mask.isfinite().all()
    assert (mask >= 0).all()


@given(seed=seeds, shape=shapes)
def test_mask_of_equal_maps_is_exactly_zero(seed: int, shape: tuple[int, int]) -> None:
    teacher, _ = maps(seed, shape)
    mask = similarity_mask(teacher, teacher.clone(), recipe.HsmOptions())
    assert mask.shape == (2, 1, *shape)
    assert (mask == 0).all()


@given(seed=seeds, shape=shapes)
def test_both_formulas_give_one_mask(seed: int, shape: tuple[int, int]) -> None:
    teacher, student = maps(seed, shape)
    by_mobius = similarity_mask(teacher, student, recipe.HsmOptions(formula="mobius"))
    torch.testing.assert_close(by_mobius, similarity_mask(teacher, student, recipe.HsmOptions()), rtol=1e-3, atol=1e-4)


@given(seed=seeds, shape=shapes)
def test_automatic_scale_ignores_a_common_factor(seed: int, shape: tuple[int, int]) -> None:
    teacher, student = maps(seed, shape)
    mask = similarity_mask(teacher, student, recipe.HsmOptions())
    torch.testing.assert_close(
        similarity_mask(13 * teacher, 13 * student, recipe.HsmOptions()), mask, rtol=2e-6, atol=1e-6
    )


@given(seed=seeds, shape=shapes)
def test_curvature_only_scales_the_mask_with_the_automatic_scale(seed: int, shape: tuple[int, int]) -> None:
    teacher, student = maps(seed, shape)
    mask = similarity_mask(teacher, student, recipe.HsmOptions(curvature=1.0))
    quarter = similarity_mask(teacher, student, recipe.HsmOptions(curvature=0.25))
    torch.testing.assert_close(quarter, 2 * mask, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quarter / quarter.sum(), mask / mask.sum(), rtol=1e-5, atol=1e-6)


@given(seed=seeds, c=curvatures)
def test_the_same_error_counts_more_where_features_are_large(seed: int, c: float) -> None:
    (u,) = tangents(seed, 1, c, longest=0.5)
    aside = torch.randn(u.shape, generator=generator(seed + 1), dtype=torch.float64)
    aside -= (aside * u).sum(dim=1, keepdim=True) / u.square().sum(dim=1, keepdim=True) * u
    aside = 0.1 / math.sqrt(c) * torch.nn.functional.normalize(aside, dim=1)
    direction = torch.nn.functional.normalize(u, dim=1) / math.sqrt(c)
    distances = [
        tangent_distance(length * direction, length * direction + aside, curvature=c) for length in (0.2, 0.6, 1.2, 1.8)
    ]
    for nearer, farther in itertools.pairwise(distances):
        assert (farther > nearer).all()


@given(seed=seeds, shape=shapes)
def test_mask_is_invariant_to_a_rotation_of_channels(seed: int, shape: tuple[int, int]) -> None:
    teacher, student = maps(seed, shape)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator(seed)))[0]
    rotated = similarity_mask(
        torch.einsum("dc,bchw->bdhw", turn, teacher),
        torch.einsum("dc,bchw->bdhw", turn, student),
        recipe.HsmOptions(),
    )
    torch.testing.assert_close(rotated, similarity_mask(teacher, student, recipe.HsmOptions()), rtol=1e-4, atol=1e-5)


@given(seed=seeds, shape=shapes)
def test_mask_is_equivariant_to_a_permutation_of_locations(seed: int, shape: tuple[int, int]) -> None:
    teacher, student = maps(seed, shape)
    order = torch.randperm(shape[0] * shape[1], generator=generator(seed))

    def moved(values: Tensor) -> Tensor:
        return values.flatten(2)[:, :, order].view(values.shape)

    mask = similarity_mask(teacher, student, recipe.HsmOptions())
    torch.testing.assert_close(
        similarity_mask(moved(teacher), moved(student), recipe.HsmOptions()), moved(mask), rtol=1e-5, atol=1e-6
    )


def test_mask_has_a_gradient_only_without_detach() -> None:
    teacher, student = maps(0, (3, 4))
    student.requires_grad_()
    assert not similarity_mask(teacher, student, recipe.HsmOptions()).requires_grad
    attached = similarity_mask(teacher, student, recipe.HsmOptions(detach=False))
    attached.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("same", [1.0, 0.0])
def test_attached_gradients_are_finite_where_the_maps_agree(same: float) -> None:
    teacher, _ = maps(0, (3, 4))
    student = (same * teacher).clone().requires_grad_()
    similarity_mask(same * teacher, student, recipe.HsmOptions(detach=False)).sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_mask_works_under_autocast() -> None:
    teacher, student = maps(0, (5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        mask = similarity_mask(teacher, student, recipe.HsmOptions())
    torch.testing.assert_close(mask, similarity_mask(teacher, student, recipe.HsmOptions()), rtol=0, atol=0)


@given(seed=seeds)
def test_first_correction_of_the_flat_limit(seed: int) -> None:
    """By the law of cosines in curvature -c: the square of a side grows by c/3 times (2|u|·2|v|·sin)²."""
    source = generator(seed)
    u, v = (torch.randn(8, 256, generator=source, dtype=torch.float64) for _ in range(2))
    c = 1e-8
    gap = (u - v).square().sum(dim=1, keepdim=True)
    uu, vv, uv = ((a * b).sum(dim=1, keepdim=True) for a, b in ((u, u), (v, v), (u, v)))
    ratio = tangent_distance(u, v, curvature=c) / (2 * gap.sqrt())
    torch.testing.assert_close(ratio, 1 + 2 * c / 3 * (uu * vv - uv.square()) / gap, rtol=0, atol=1e-10)
    assert (ratio - 1).mean() < 1e-6


@given(seed=seeds, c=curvatures)
def test_float32_is_precise_for_short_and_long_vectors(seed: int, c: float) -> None:
    """Lengths t = sqrt(c)·|u| from 0.1 to 20 in one map; the mask clips them at 2.3."""
    source = generator(seed)
    lengths = torch.logspace(-1, math.log10(20), 64, dtype=torch.float64)
    vectors = []
    for _ in range(2):
        direction = torch.randn(64, 32, generator=source, dtype=torch.float64)
        direction = torch.nn.functional.normalize(direction, dim=1)
        vectors.append(lengths[torch.randperm(64, generator=source)][:, None] * direction / math.sqrt(c))
    u, v = vectors
    found = tangent_distance(u.float(), v.float(), curvature=c)
    torch.testing.assert_close(found.double(), tangent_distance(u, v, curvature=c), rtol=1e-5, atol=0)
    teacher, student = (each.T.reshape(1, 32, 4, 16) for each in (u, v))
    mask = similarity_mask(teacher.float(), student.float(), recipe.HsmOptions())
    scale = 1 / teacher.norm(dim=1).mean()
    clipped = []
    for each in (teacher, student):
        scaled = scale * each
        clipped.append(scaled * (2.3 / scaled.norm(dim=1, keepdim=True).clamp_min(2.3)))
    assert (scale * teacher.norm(dim=1) > 2.3).any()
    torch.testing.assert_close(mask.double(), tangent_distance(*clipped, curvature=1.0), rtol=1e-5, atol=0)


@given(seed=seeds, c=curvatures)
def test_mask_weights_the_same_error_more_where_features_are_large(seed: int, c: float) -> None:
    """At a radius of 1, for any unit of the features; at a very small radius the mask is the Euclidean distance."""
    source = generator(seed)
    direction, aside = (torch.randn(1, 16, 1, 9, generator=source) for _ in range(2))
    direction = torch.nn.functional.normalize(direction, dim=1)
    aside = aside - (aside * direction).sum(dim=1, keepdim=True) * direction
    aside = torch.nn.functional.normalize(aside, dim=1)
    for unit in (0.05, 1.0, 40.0):
        teacher = unit * torch.linspace(0.2, 1.8, 9) * direction
        student = teacher + 0.1 * unit * aside
        mask = similarity_mask(teacher, student, recipe.HsmOptions(curvature=c))[0, 0, 0].tolist()
        assert all(larger > smaller for smaller, larger in itertools.pairwise(mask))
        assert mask[-1] > 2.5 * mask[0]
        flat = similarity_mask(teacher, student, recipe.HsmOptions(curvature=c, target_radius=1e-3))
        torch.testing.assert_close(flat, flat.mean().expand_as(flat), rtol=1e-3, atol=0)


@given(seed=seeds, radius=st.sampled_from((1.0, 2.0, 4.0, 8.0)), step=st.floats(1e-3, 0.5))
def test_float32_is_precise_at_any_radius(seed: int, radius: float, step: float) -> None:
    """Against the law of cosines in float64, for neighbors at norms up to 8, where points have a norm of 1 - 1e-7."""
    source = generator(seed)
    u = torch.nn.functional.normalize(torch.randn(40, 6, generator=source, dtype=torch.float64), dim=1) * radius
    v = u + step * torch.randn(40, 6, generator=source, dtype=torch.float64)
    found = tangent_distance(u.float(), v.float(), curvature=1.0, clip=20.0)
    (a, b), cosine = (2 * part.norm(dim=1, keepdim=True) for part in (u, v)), (u * v).sum(1, keepdim=True)
    cosine = cosine / (u.norm(dim=1, keepdim=True) * v.norm(dim=1, keepdim=True))
    # acosh(1 + x) through x, which float64 keeps for small distances.
    x = (a - b).cosh() - 1 + a.sinh() * b.sinh() * (1 - cosine)
    expected = 2 * (x / 2).sqrt().asinh()
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-5)
    assert (tangent_distance(u.float(), u.float(), curvature=1.0, clip=20.0) == 0).all()


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.0])
def test_the_default_clip_follows_the_radius(radius: float) -> None:
    """2.3 times the mean norm; a smaller clip gives far cells of one direction the distance 0."""
    teacher, _ = maps(0, (6, 6), channels=16)
    followed = similarity_mask(2 * teacher, 1.5 * teacher, recipe.HsmOptions(target_radius=radius))
    assert (followed > 0).all()
    same = similarity_mask(2 * teacher, 1.5 * teacher, recipe.HsmOptions(target_radius=radius, clip=2.3 * radius))
    torch.testing.assert_close(followed, same, rtol=0, atol=0)
    clipped = similarity_mask(2 * teacher, 1.5 * teacher, recipe.HsmOptions(target_radius=radius, clip=0.3 * radius))
    assert clipped.max() < 1e-3


def test_a_larger_radius_and_a_power_increase_the_contrast() -> None:
    """An equal error weighs more at strong cells, in units of the mean weight."""
    teacher, noise = maps(0, (8, 8), channels=16)
    strength = torch.linspace(0.3, 2.0, 64).view(1, 1, 8, 8)
    teacher = strength * torch.nn.functional.normalize(teacher, dim=1)
    student = teacher + 0.1 * torch.nn.functional.normalize(noise, dim=1)

    def contrast(**options: float) -> float:
        mask = similarity_mask(teacher, student, recipe.HsmOptions.model_validate(options))
        return float(mask[..., -2:, :].mean() / mask.mean())

    assert contrast(target_radius=2.0, clip=2.3) < 1.05 * contrast() < contrast(target_radius=2.0)
    assert contrast(target_radius=2.0) == pytest.approx(contrast(target_radius=2.0, clip=8.0), rel=1e-3)
    assert contrast(power=2.0) > contrast()
