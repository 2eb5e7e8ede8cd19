"""FDR: properties, and the closed form against the six steps of the paper's Algorithm 1."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ifkd import recipe
from ifkd.distillation.fdr import FrequencyFilter, feature_richness, low_pass, reconstruct

SHAPES = ((1, 1), (2, 3), (7, 11), (13, 21), (25, 42), (42, 25), (101, 67))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

seeds = st.integers(0, 2**31)
shapes = st.sampled_from(SHAPES)
ratios = st.sampled_from((0.0, 0.05, 0.1, 0.35, 0.5, 1.0))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features_and_mask(
    seed: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32, channels: int = 3
) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    features = torch.randn(2, channels, *shape, generator=source, dtype=dtype)
    return features, torch.rand(2, 1, *shape, generator=source, dtype=dtype)


def window(shape: tuple[int, int], r: float) -> Tensor:
    """Return the low-pass window over the center-shifted spectrum, cell by cell from its definition."""
    height, width = shape
    passed = torch.zeros(shape)
    for row in range(height):
        for column in range(width):
            farthest = max(abs(row - height // 2), abs(column - width // 2))
            passed[row, column] = float(farthest <= r * min(shape) / 2)
    return passed


def six_steps(features: Tensor, mask: Tensor, r: float, factors: Tensor | None) -> Tensor:
    """Return Algorithm 1 step by step: a shifted complex transform, the window, a spatial product, W."""
    axes = (2, 3)
    spectrum = torch.fft.fftshift(torch.fft.fft2(features), dim=axes)
    passed = window((features.shape[2], features.shape[3]), r)
    low = torch.fft.ifft2(torch.fft.ifftshift(passed * spectrum, dim=axes))
    assert low.imag.abs().max() < 1e-4
    weighted = low.real * mask
    together = (1 - passed) * spectrum + torch.fft.fftshift(torch.fft.fft2(weighted), dim=axes)
    if factors is not None:
        together = together * factors
    return torch.fft.ifft2(torch.fft.ifftshift(together, dim=axes)).real


def full_spectrum(half: Tensor, width: int) -> Tensor:
    """Return factors on the center-shifted full spectrum from those on the half spectrum.

    Factors of the half spectrum apply to the conjugate frequencies as well, so the other half is mirrored.
    """
    mirrored = torch.roll(half.flip(1), 1, dims=1).conj()
    columns = [half[:, :, k] if k <= width // 2 else mirrored[:, :, width - k] for k in range(width)]
    return torch.fft.fftshift(torch.stack(columns, dim=2), dim=(1, 2))


@given(seed=seeds, shape=shapes, r=ratios)
def test_a_mask_of_ones_changes_nothing(seed: int, shape: tuple[int, int], r: float) -> None:
    features, mask = features_and_mask(seed, shape)
    torch.testing.assert_close(reconstruct(features, torch.ones_like(mask), r=r), features, **CLOSE)
    torch.testing.assert_close(reconstruct(features, None, r=r), features, rtol=0, atol=0)


@given(seed=seeds, shape=shapes)
def test_a_window_over_everything_multiplies_by_the_mask(seed: int, shape: tuple[int, int]) -> None:
    features, mask = features_and_mask(seed, shape)
    everything = 2 * max(shape[0] // 2, shape[1] // 2) / min(shape)
    torch.testing.assert_close(reconstruct(features, mask, r=everything), features * mask, **CLOSE)


def test_r_of_one_is_not_all_pass_on_rectangular_maps() -> None:
    features, mask = features_and_mask(0, (10, 17))
    assert (reconstruct(features, mask, r=1.0) - features * mask).abs().max() > 0.1


@given(seed=seeds, shape=shapes)
def test_r_of_zero_weights_only_the_mean(seed: int, shape: tuple[int, int]) -> None:
    features, mask = features_and_mask(seed, shape)
    mean = features.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(reconstruct(features, mask, r=0.0), features - mean + mean * mask, **CLOSE)


@given(seed=seeds, shape=shapes, r=ratios)
def test_the_closed_form_is_the_algorithm(seed: int, shape: tuple[int, int], r: float) -> None:
    features, mask = features_and_mask(seed, shape)
    torch.testing.assert_close(reconstruct(features, mask, r=r), six_steps(features, mask, r, None), **CLOSE)


@given(
    seed=seeds,
    shape=shapes,
    r=ratios,
    kind=st.sampled_from(("grid", "channel")),
    complex_=st.booleans(),
    norm=st.sampled_from(("rms", "none")),
)
def test_the_closed_form_with_a_filter_is_the_algorithm(
    seed: int, shape: tuple[int, int], r: float, kind: str, complex_: bool, norm: str
) -> None:
    features, mask = features_and_mask(seed, shape)
    config = recipe.FdrOptions(filter=kind, grid=(4, 3), filter_complex=complex_, filter_norm=norm)
    frequency_filter = FrequencyFilter(3, config)
    with torch.no_grad():
        frequency_filter.weight.add_(0.3 * torch.randn(frequency_filter.weight.shape, generator=generator(seed)))
        half = frequency_filter.factors(*shape).expand(3, shape[0], shape[1] // 2 + 1)
        ours = frequency_filter(reconstruct(features, mask, r=r))
    theirs = six_steps(features, mask, r, full_spectrum(half, shape[1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@given(seed=seeds, shape=shapes, r=ratios)
def test_energies_of_low_and_high_add_up(seed: int, shape: tuple[int, int], r: float) -> None:
    features, _ = features_and_mask(seed, shape, torch.float64)
    low = low_pass(features, r)
    high = features - low
    torch.testing.assert_close(features.square().sum(), low.square().sum() + high.square().sum())
    torch.testing.assert_close(low_pass(low, r), low, rtol=1e-10, atol=1e-10)
    spectrum = torch.fft.fft2(features, norm="ortho")
    torch.testing.assert_close(features.square().sum(), spectrum.abs().square().sum())


@given(seed=seeds, shape=shapes, r=ratios, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear_in_the_features(seed: int, shape: tuple[int, int], r: float, a: float, b: float) -> None:
    f, mask = features_and_mask(seed, shape)
    g, _ = features_and_mask(seed + 1, shape)
    together = reconstruct(a * f + b * g, mask, r=r)
    apart = a * reconstruct(f, mask, r=r) + b * reconstruct(g, mask, r=r)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (20, 31), (33, 24)])
@pytest.mark.parametrize(("cycles", "is_low"), [((0, 0), True), ((1, 1), True), ((0, 2), True), ((2, 5), False)])
def test_a_single_wave_is_either_low_or_high(shape: tuple[int, int], cycles: tuple[int, int], is_low: bool) -> None:
    r = 2 * 2.5 / min(shape)  # passes integer frequencies up to 2
    rows = torch.arange(shape[0])[:, None] * cycles[0] / shape[0]
    columns = torch.arange(shape[1])[None, :] * cycles[1] / shape[1]
    wave = torch.cos(2 * math.pi * (rows + columns))[None, None]
    torch.testing.assert_close(low_pass(wave, r), wave if is_low else torch.zeros_like(wave), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_is_real_float32_of_the_same_shape(shape: tuple[int, int], dtype: torch.dtype) -> None:
    features, mask = features_and_mask(0, shape)
    frequency_filter = FrequencyFilter(3, recipe.FdrOptions(grid=(4, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        found = frequency_filter(reconstruct(features.to(dtype), mask, r=0.1))
    assert found.shape == features.shape
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    plain = frequency_filter(reconstruct(features.to(dtype), mask, r=0.1))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


@given(seed=seeds, shape=shapes)
def test_richness_is_the_largest_probability(seed: int, shape: tuple[int, int]) -> None:
    logits = (1.5 * torch.randn(2, 18, *shape, generator=generator(seed))).requires_grad_()
    mask = feature_richness(logits)
    assert mask.shape == (2, 1, *shape)
    assert not mask.requires_grad
    assert ((mask > 0) & (mask < 1)).all()
    torch.testing.assert_close(mask[:, 0], torch.stack([plane.sigmoid() for plane in logits.unbind(1)]).max(0).values)


@given(shape=shapes, kind=st.sampled_from(("grid", "channel")), complex_=st.booleans())
def test_a_new_filter_is_the_identity(shape: tuple[int, int], kind: str, complex_: bool) -> None:
    features, _ = features_and_mask(0, shape)
    frequency_filter = FrequencyFilter(3, recipe.FdrOptions(filter=kind, filter_complex=complex_))
    torch.testing.assert_close(frequency_filter(features), features, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_frequency_zero_of_the_map_is_frequency_zero_of_the_grid(shape: tuple[int, int]) -> None:
    frequency_filter = FrequencyFilter(1, recipe.FdrOptions(filter="grid", grid=(16, 9), filter_norm="none"))
    with torch.no_grad():
        frequency_filter.weight.zero_()
        frequency_filter.weight[0, 8, 0] = 5.0
    factors = frequency_filter.factors(*shape)
    assert factors.shape == (1, shape[0], shape[1] // 2 + 1)
    assert factors[0, 0, 0].item() == 5.0
    assert factors.sum() >= 5.0


def test_the_grid_is_sampled_on_normalized_frequencies() -> None:
    frequency_filter = FrequencyFilter(1, recipe.FdrOptions(filter="grid", grid=(16, 9), filter_norm="none"))
    frequency_filter.weight.data = torch.rand(1, 16, 9, generator=generator(0))
    # Frequencies of a map of the grid's size (16 rows, 16 columns, 9 in the half spectrum) are the nodes.
    at_nodes = torch.fft.ifftshift(frequency_filter.weight, dim=1)
    torch.testing.assert_close(frequency_filter.factors(16, 16), at_nodes)
    # At twice the size, every second frequency is a node, and the others are means of two nodes.
    double = frequency_filter.factors(32, 32)
    torch.testing.assert_close(double[:, ::2, ::2], at_nodes)
    torch.testing.assert_close(double[:, 0, 1], at_nodes[:, 0, :2].mean(dim=1))
    torch.testing.assert_close(double[:, 1, 0], at_nodes[:, :2, 0].mean(dim=1))


@given(seed=seeds, factor=st.floats(0.01, 100))
@pytest.mark.parametrize("norm", ["energy", "rms"])
def test_normalization_ignores_a_factor_of_the_filter(norm: str, seed: int, factor: float) -> None:
    features, _ = features_and_mask(seed, (7, 11))
    frequency_filter = FrequencyFilter(3, recipe.FdrOptions(grid=(4, 3), filter_norm=norm))
    frequency_filter.weight.data = 1 + torch.rand(3, 4, 3, generator=generator(seed))
    before = frequency_filter(features)
    frequency_filter.weight.data = frequency_filter.weight.data * factor
    torch.testing.assert_close(frequency_filter(features), before, rtol=1e-4, atol=1e-4)


def random_filter(seed: int, kind: str, *, complex_: bool, norm: str = "energy") -> FrequencyFilter:
    """Return a filter of three channels with random factors, most of them small."""
    config = recipe.FdrOptions(filter=kind, grid=(4, 3), filter_complex=complex_, filter_norm=norm)
    frequency_filter = FrequencyFilter(3, config)
    frequency_filter.weight.data = torch.randn(frequency_filter.weight.shape, generator=generator(seed)) ** 3
    return frequency_filter


@given(seed=seeds, shape=shapes, kind=st.sampled_from(("grid", "channel")), slope=st.floats(0, 3))
def test_a_filter_keeps_the_energy_of_each_channel(seed: int, shape: tuple[int, int], kind: str, slope: float) -> None:
    """For any spectrum: natural maps have most of their energy at low frequencies, as with `slope` above 0."""
    features, _ = features_and_mask(seed, shape)
    rows, columns = torch.fft.fftfreq(shape[0]), torch.fft.rfftfreq(shape[1])
    falling = (rows[:, None] ** 2 + columns[None] ** 2 + 0.01) ** (-slope / 2)
    features = torch.fft.irfft2(torch.fft.rfft2(features) * falling, s=shape)
    filtered = random_filter(seed, kind, complex_=False)(features)
    energies = (part.double().square().sum((2, 3)) for part in (features, filtered))
    torch.testing.assert_close(*energies, rtol=1e-4, atol=1e-9)


def test_the_filters_own_root_mean_square_does_not_keep_the_energy() -> None:
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    features = (rows + columns).cos().expand(1, 3, 16, 16)
    filtered = random_filter(1, "grid", complex_=False, norm="rms")(features)
    assert not torch.allclose(filtered.square().sum((2, 3)), features.square().sum((2, 3)), rtol=0.1)


@given(seed=seeds, a=st.floats(-3, 3), kind=st.sampled_from(("grid", "channel")), complex_=st.booleans())
def test_both_sides_are_multiplied_by_the_same_factors(seed: int, a: float, kind: str, complex_: bool) -> None:
    """With the factors of the teacher's maps the filter is linear in the student's, and equal for equal maps."""
    teacher, _ = features_and_mask(seed, (13, 21))
    f, g = (features_and_mask(seed + n, (13, 21))[0] for n in (1, 2))
    frequency_filter = random_filter(seed, kind, complex_=complex_)
    together = frequency_filter(a * f + g, like=teacher)
    apart = a * frequency_filter(f, like=teacher) + frequency_filter(g, like=teacher)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(frequency_filter(teacher, like=teacher), frequency_filter(teacher), rtol=0, atol=0)


@pytest.mark.parametrize("complex_", [True, False])
def test_maps_without_energy_stay_empty(complex_: bool) -> None:
    frequency_filter = random_filter(0, "grid", complex_=complex_)
    found = frequency_filter(torch.zeros(2, 3, 7, 11))
    assert (found == 0).all()
    found.square().sum().backward()
    assert frequency_filter.weight.grad is not None
    assert frequency_filter.weight.grad.isfinite().all()


def test_gradients_reach_the_filter_alone() -> None:
    features, mask = features_and_mask(0, (7, 11))
    frequency_filter = FrequencyFilter(3, recipe.FdrOptions(grid=(4, 3)))
    targets = torch.randn(features.shape, generator=generator(1))
    (frequency_filter(reconstruct(features, mask, r=0.1)) - targets).square().sum().backward()
    assert frequency_filter.weight.grad is not None
    assert frequency_filter.weight.grad.isfinite().all()
    assert frequency_filter.weight.grad.abs().sum() > 0
    frozen = FrequencyFilter(3, recipe.FdrOptions(grid=(4, 3), filter_trainable=False))
    assert not frozen(reconstruct(features, mask, r=0.1)).requires_grad


def test_gfnet_filters_start_small() -> None:
    torch.manual_seed(0)
    config = recipe.FdrOptions(filter="channel", filter_init="gfnet", filter_norm="none", filter_complex=True)
    weight = FrequencyFilter(256, config).weight
    assert weight.shape == (256, 1, 1, 2)
    assert weight.std().item() == pytest.approx(0.02, rel=0.15)


@given(seed=seeds, shape=shapes, r=st.floats(0, 8))
def test_a_mask_and_a_filter_of_ones_change_nothing_for_any_r(seed: int, shape: tuple[int, int], r: float) -> None:
    features, mask = features_and_mask(seed, shape)
    identity = FrequencyFilter(3, recipe.FdrOptions())
    found = identity(reconstruct(features, torch.ones_like(mask), r=r))
    torch.testing.assert_close(found, features, **CLOSE)


@given(seed=seeds, side=st.integers(1, 40), r=st.floats(1, 4))
def test_r_of_one_and_more_is_all_pass_on_square_maps(seed: int, side: int, r: float) -> None:
    features, mask = features_and_mask(seed, (side, side))
    torch.testing.assert_close(reconstruct(features, mask, r=r), features * mask, **CLOSE)


@pytest.mark.parametrize(("shape", "fraction"), [((100, 168), 101 / 168), ((25, 42), 25 / 42), ((64, 64), 1.0)])
def test_r_of_one_passes_a_fraction_of_the_frequencies(shape: tuple[int, int], fraction: float) -> None:
    """An impulse keeps the fraction of itself at its position that the window passes of the spectrum."""
    impulse = torch.zeros(1, 1, *shape, dtype=torch.float64)
    impulse[0, 0, 17, 11] = 1.0
    assert low_pass(impulse, 1.0)[0, 0, 17, 11].item() == pytest.approx(fraction)
