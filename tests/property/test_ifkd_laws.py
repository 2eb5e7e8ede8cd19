"""IFKD's losses: properties, and all options against a slow float64 implementation of the paper's equations."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.ede import Interp, activate, resize, width_projection
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.models import DetectorOutput, Targets

SHAPES = ((13, 21), (7, 11), (3, 5), (2, 3), (1, 2))
"""Maps of a rectangular image, finest first."""
CHANNELS, CLASS_CHANNELS = 8, 27
LEVELS = recipe.LEVELS["retinanet"]
RMS = (0.5, 1.0, 2.0, 3.0, 4.0)

seeds = st.integers(0, 2**31)


def disturbance(
    embedding: Tensor, shape: tuple[int, int], *, interp: Interp = "bilinear", center: bool = False
) -> Tensor:
    """Return phi_EDE of a level (eq. 2)."""
    return resize(activate(embedding, center=center), shape, interp=interp)


def output(seed: int, *, channels: int = CHANNELS, batch: int = 2, spread: float = 1.0) -> DetectorOutput:
    source = torch.Generator().manual_seed(seed)
    return DetectorOutput(
        pyramid=tuple(spread * torch.randn(batch, channels, *shape, generator=source) for shape in SHAPES),
        logits=tuple(2 * torch.randn(batch, CLASS_CHANNELS, *shape, generator=source) - 2 for shape in SHAPES),
        deltas=tuple(torch.randn(batch, 36, *shape, generator=source) for shape in SHAPES),
    )


def no_targets(batch: int) -> list[Targets]:
    return [Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)) for _ in range(batch)]


def make_batch(
    student: DetectorOutput, teacher: DetectorOutput, *, embedding: Tensor | None = None, iteration: int = 10_000
) -> DistillationBatch:
    return DistillationBatch(student, teacher, embedding, no_targets(len(student.logits[0])), iteration)


def embedding(seed: int, *, batch: int = 2) -> Tensor:
    return torch.randn(batch, 256, 5, 8, generator=torch.Generator().manual_seed(seed))


def make(
    config: recipe.IfkdOptions, *, channels: int = CHANNELS, teacher_channels: int = CHANNELS, identity: bool = False
) -> IfkdMethod:
    """Return the method in eval mode, where FDR always applies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        method = build_method(config, NetworkPair(channels, teacher_channels, LEVELS, RMS))
    assert isinstance(method, IfkdMethod)
    if identity:
        for adapter in method.adapters:
            nn.init.dirac_(adapter.weight)
            nn.init.zeros_(adapter.bias)
    return method.eval()


def plain(**options: Any) -> recipe.IfkdOptions:
    """Return options without EDE, FDR and feature scale: the target is the teacher's features."""
    base: dict[str, Any] = {"ede": {"enabled": False}, "fdr": {"enabled": False}, "feature_scale": "none"}
    return recipe.IfkdOptions.model_validate(base | options)


# --- a slow reference ---------------------------------------------------------------------------------------------


def slow_fdr(features: Tensor, logits: Tensor, r: float) -> Tensor:
    """Return eqs 3-8 without a filter, from the complex spectrum and its signed frequencies."""
    height, width = features.shape[2:]
    rows = torch.fft.fftfreq(height, dtype=torch.float64).mul(height).round().abs()
    columns = torch.fft.fftfreq(width, dtype=torch.float64).mul(width).round().abs()
    low_cells = torch.maximum(rows[:, None], columns[None, :]) <= r * min(height, width) / 2
    spectrum = torch.fft.fft2(features)
    low = torch.fft.ifft2(spectrum * low_cells).real
    confident = logits.sigmoid().max(dim=1, keepdim=True).values
    return torch.fft.ifft2(spectrum * ~low_cells + torch.fft.fft2(low * confident)).real


def slow_mask(teacher: Tensor, student: Tensor, clip: float = 2.3) -> Tensor:
    """Return eqs 9-11 cell by cell: exponential map, Moebius sum, artanh; curvature 1, automatic scale, radius 1."""
    scale = 1 / teacher.norm(dim=1).mean()
    batch, _, height, width = teacher.shape
    mask = torch.zeros(batch, 1, height, width, dtype=torch.float64)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                points = []
                for features in (teacher, student):
                    u = scale * features[b, :, i, j]
                    t = u.norm()
                    points.append(math.tanh(min(float(t), clip)) * u / t)
                x, y = -points[0], points[1]
                xy, xx, yy = x @ y, x @ x, y @ y
                moved = ((1 + 2 * xy + yy) * x + (1 - xx) * y) / (1 + 2 * xy + xx * yy)
                mask[b, 0, i, j] = 2 * torch.atanh(moved.norm())
    return mask


def slow_losses(method: IfkdMethod, seen: DistillationBatch) -> tuple[Tensor, Tensor]:
    """Return L_feat and L_head (eqs 12, 13) in float64, for a 3x3 adapter per level and no filter."""
    config = method.config
    feature, head = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    width = seen.teacher.pyramid[0].shape[1]
    for level in range(5):
        rms = RMS[level] / config.reference_rms if config.feature_scale == "auto" else 1.0
        teacher = seen.teacher.pyramid[level].double() / rms
        adapter = method.adapters[level]
        adapted = nn.functional.conv2d(
            seen.student.pyramid[level].double(), adapter.weight.double(), adapter.bias.double(), padding=1
        )
        zs, zt = seen.student.logits[level].double(), seen.teacher.logits[level].double()
        target = slow_fdr(teacher, zt, config.fdr.r) if config.fdr.enabled else teacher
        if config.ede.enabled:
            assert seen.embedding is not None
            assert method.projection is not None
            projected = torch.einsum("dc,bchw->bdhw", method.projection[:, :, 0, 0], seen.embedding)
            target = target + config.ede.weight * disturbance(projected, SHAPES[level]).double()
        mask = slow_mask(teacher, adapted.detach()) if config.hsm.enabled else torch.ones_like(zs[:, :1])
        error = (target - adapted).square().sum(dim=1, keepdim=True)
        if config.feature_scale == "auto":
            error = error * 256 / width
        soft = zt.sigmoid()
        bce = -(soft * zs.sigmoid().log() + (1 - soft) * (1 - zs.sigmoid()).log())
        if config.head.kind == "kl":
            bce = bce + soft * soft.log() + (1 - soft) * (1 - soft).log()
        for values, is_head in ((error, False), (bce.sum(dim=1, keepdim=True), True)):
            if config.norm == "image":
                term = torch.stack([(m * v).sum() / m.sum() for m, v in zip(mask, values, strict=True)]).mean()
            else:
                count = mask.sum() if config.norm == "mask" else mask.numel()
                term = (mask * values).sum() / count
            feature, head = (feature, head + term) if is_head else (feature + term, head)
    return feature, head


@pytest.mark.parametrize("hsm", [True, False])
@pytest.mark.parametrize("norm", ["mask", "image", "hw"])
@pytest.mark.parametrize("kind", ["bce", "kl"])
@pytest.mark.parametrize("scale", ["auto", "none"])
def test_losses_are_the_papers_equations(hsm: bool, norm: str, kind: str, scale: str) -> None:
    config = recipe.IfkdOptions.model_validate(
        {
            "norm": norm,
            "feature_scale": scale,
            "head": {"kind": kind},
            "hsm": {"enabled": hsm, "reference": "raw"},
            "fdr": {"apply_to": "teacher", "r": 0.4},
            "ede": {"weight": 0.7},
        }
    )
    method = make(config)
    student, seen_embedding = output(1), embedding(2)
    for level in student.pyramid + student.logits:
        level.requires_grad_()
    seen = make_batch(student, output(0), embedding=seen_embedding)
    terms = method.losses(seen)
    feature, head = slow_losses(method, seen)
    torch.testing.assert_close(terms["feature"].value.double(), feature, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["head"].value.double(), head, rtol=1e-5, atol=1e-6)
    # The slow mask is a constant; equal gradients show that ours is one too.
    leaves = [*student.pyramid, *student.logits, *method.adapters.parameters()]
    ours = torch.autograd.grad(terms["feature"].value + terms["head"].value, leaves)
    theirs = torch.autograd.grad(feature + head, leaves)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-5)


# --- laws ---------------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_feature_loss_is_zero_for_equal_features(seed: int) -> None:
    teacher = output(seed)
    student = DetectorOutput(tuple(level.clone().requires_grad_() for level in teacher.pyramid), *_heads(teacher))
    method = make(plain(), identity=True)
    terms = method.losses(make_batch(student, teacher))
    assert terms["feature"].value.item() == 0.0
    assert terms["head"].value.item() == 0.0
    gradients = torch.autograd.grad(terms["feature"].value, [*student.pyramid, *method.adapters.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def _heads(source: DetectorOutput) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return source.logits, source.deltas


def test_loss_of_ede_alone_is_its_mean_energy() -> None:
    teacher, seen_embedding = output(0), embedding(1)
    method = make(plain(ede={"weight": 1.5}, hsm={"enabled": False}), identity=True)
    found = method.losses(make_batch(teacher, teacher, embedding=seen_embedding))["feature"].value
    assert method.projection is not None
    projected = nn.functional.conv2d(seen_embedding, method.projection)
    energies = [(1.5 * disturbance(projected, shape)).square().sum(dim=1).mean() for shape in SHAPES]
    torch.testing.assert_close(found, torch.stack(energies).sum())
    off = make(plain(ede={"weight": 0.0}, hsm={"enabled": False}), identity=True)
    assert off.losses(make_batch(teacher, teacher, embedding=seen_embedding))["feature"].value.item() == 0.0


def test_ede_changes_only_its_levels() -> None:
    teacher, seen_embedding = output(0), embedding(1)
    options = {"hsm": {"enabled": False}}
    combined = make(plain(ede={"levels": ["p3", "p4", "p5", "p6", "p7"]}, **options), identity=True)
    parts = [make(plain(ede={"levels": [level]}, **options), identity=True) for level in LEVELS]
    seen = make_batch(teacher, teacher, embedding=seen_embedding)
    values = [part.losses(seen)["feature"].value for part in parts]
    assert all(value > 0 for value in values)
    torch.testing.assert_close(combined.losses(seen)["feature"].value, torch.stack(values).sum())


def test_order_ede_then_fdr_reconstructs_the_sum() -> None:
    """With r = 0 and no confidence FDR removes the mean: of the teacher, or of teacher plus disturbance."""
    seen_embedding = embedding(1)
    teacher, student = output(0), output(1)
    unsure = tuple(torch.full_like(level, -50.0) for level in teacher.logits)
    teacher = DetectorOutput(teacher.pyramid, unsure, teacher.deltas)
    values = {}
    for order in ("add_to_target", "ede_then_fdr"):
        options = {"ede": {"order": order}, "fdr": {"r": 0.0, "apply_to": "teacher"}, "hsm": {"enabled": False}}
        method = make(plain(**options), identity=True)
        values[order] = method.losses(make_batch(student, teacher, embedding=seen_embedding))["feature"].value
    assert method.projection is not None
    projected = nn.functional.conv2d(seen_embedding, method.projection)
    expected = {"add_to_target": torch.zeros(()), "ede_then_fdr": torch.zeros(())}
    for level, shape in enumerate(SHAPES):
        added = disturbance(projected, shape)
        centered = teacher.pyramid[level] - teacher.pyramid[level].mean(dim=(2, 3), keepdim=True)
        targets = {
            "add_to_target": centered + added,
            "ede_then_fdr": centered + added - added.mean((2, 3), keepdim=True),
        }
        for order, target in targets.items():
            error = (target - student.pyramid[level]).square().sum(dim=1).mean()
            expected[order] = expected[order] + error
    for order, value in values.items():
        torch.testing.assert_close(value, expected[order], rtol=1e-4, atol=1e-4)


@given(seed=seeds)
def test_head_loss_is_minimal_for_equal_logits(seed: int) -> None:
    teacher, features = output(seed), output(seed + 1)
    logits = tuple(level.clone().requires_grad_() for level in teacher.logits)
    student = DetectorOutput(features.pyramid, logits, features.deltas)
    terms = {kind: make(plain(head={"kind": kind})).losses(make_batch(student, teacher)) for kind in ("bce", "kl")}
    gradients = torch.autograd.grad(terms["bce"]["head"].value, logits)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-6
    assert abs(terms["kl"]["head"].value.item()) < 1e-5
    worse = DetectorOutput(features.pyramid, tuple(level.detach() + 0.3 for level in logits), features.deltas)
    for kind, found in terms.items():
        assert make(plain(head={"kind": kind})).losses(make_batch(worse, teacher))["head"].value > found["head"].value


@given(seed=seeds)
def test_bce_minus_kl_is_the_teachers_entropy(seed: int) -> None:
    teacher, student = output(seed), output(seed + 1)
    bce, kl = (
        make(plain(head={"kind": kind}, hsm={"enabled": False})).losses(make_batch(student, teacher))["head"].value
        for kind in ("bce", "kl")
    )
    entropy = torch.zeros(())
    for logits in teacher.logits:
        each = torch.distributions.Bernoulli(logits=logits).entropy()
        entropy = entropy + each.sum(dim=1).mean()
    torch.testing.assert_close(bce - kl, entropy, rtol=1e-4, atol=1e-4)


@given(seed=seeds)
def test_losses_ignore_a_common_factor_of_the_mask(seed: int) -> None:
    """With the automatic scale a quarter of the curvature doubles the mask and changes nothing else."""
    seen = make_batch(output(seed), output(seed + 1))
    one, two = (make(plain(hsm={"curvature": c})).losses(seen) for c in (1.0, 0.25))
    for name in ("feature", "head"):
        torch.testing.assert_close(one[name].value, two[name].value, rtol=1e-4, atol=1e-5)


def test_without_a_mask_the_loss_is_the_mean_over_locations() -> None:
    teacher, student = output(0), output(1)
    found = make(plain(hsm={"enabled": False}), identity=True).losses(make_batch(student, teacher))["feature"].value
    errors = [(t - s).square().sum(dim=1).mean() for t, s in zip(teacher.pyramid, student.pyramid, strict=True)]
    torch.testing.assert_close(found, torch.stack(errors).sum())


@pytest.mark.parametrize("norm", ["mask", "image", "hw"])
def test_repeated_images_do_not_change_the_losses(norm: str) -> None:
    def twice(once: DetectorOutput) -> DetectorOutput:
        parts = ([level.repeat(2, 1, 1, 1) for level in part] for part in (once.pyramid, once.logits, once.deltas))
        return DetectorOutput(*(tuple(part) for part in parts))

    teacher, student, seen_embedding = output(0, batch=1), output(1, batch=1), embedding(2, batch=1)
    method = make(recipe.IfkdOptions(norm=norm))
    once = method.losses(make_batch(student, teacher, embedding=seen_embedding))
    both = method.losses(make_batch(twice(student), twice(teacher), embedding=seen_embedding.repeat(2, 1, 1, 1)))
    for name in ("feature", "head"):
        torch.testing.assert_close(once[name].value, both[name].value, rtol=1e-5, atol=1e-6)


def test_channel_mean_is_the_sum_over_the_number_of_channels() -> None:
    seen = make_batch(output(1), output(0))
    total, mean = (
        make(plain(channel_reduction=reduction)).losses(seen)["feature"].value for reduction in ("sum", "mean")
    )
    torch.testing.assert_close(mean * CHANNELS, total)


def test_channel_sum_is_scaled_to_256_channels_by_the_automatic_scale() -> None:
    seen = make_batch(output(1), output(0))
    options = {"feature_scale": "auto", "hsm": {"enabled": False}}
    total, mean = (
        make(plain(channel_reduction=reduction, **options)).losses(seen)["feature"].value
        for reduction in ("sum", "mean")
    )
    torch.testing.assert_close(mean * 256, total)


def test_weights_and_warm_up() -> None:
    seen = make_batch(output(1), output(0), embedding=embedding(2))
    one, two = (make(recipe.IfkdOptions(alpha=alpha, beta=0.5)).losses(seen) for alpha in (0.06, 0.12))
    assert one["feature"].weight == 0.06
    assert two["feature"].weight == 0.12
    assert one["head"].weight == two["head"].weight == 0.5
    torch.testing.assert_close(one["feature"].value, two["feature"].value, rtol=0, atol=0)
    method = make(recipe.IfkdOptions(warmup_iters=500))
    for iteration, factor in ((0, 0.0), (1, 1 / 500), (250, 0.5), (500, 1.0), (9999, 1.0)):
        terms = method.losses(make_batch(output(1), output(0), embedding=embedding(2), iteration=iteration))
        assert terms["feature"].weight == pytest.approx(0.06 * factor)
        assert terms["head"].weight == pytest.approx(0.5 * factor)
    unwarmed = make(recipe.IfkdOptions(warmup_iters=0))
    assert unwarmed.losses(make_batch(output(1), output(0), iteration=0))["feature"].weight == 0.06


def test_only_adapters_and_filters_have_gradients() -> None:
    teacher, student = output(0), output(1)
    for level in teacher.pyramid + teacher.logits:
        level.requires_grad_()
    method = make(recipe.IfkdOptions())
    seen_embedding = embedding(2).requires_grad_()
    terms = method.losses(make_batch(student, teacher, embedding=seen_embedding))
    (terms["feature"].value + terms["head"].value).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert seen_embedding.grad is None
    assert all(level.grad is None for level in teacher.logits)


def test_attention_transfer_is_added_on_request() -> None:
    """With its own options, and equal to the method of its own."""
    seen = make_batch(output(1), output(0))
    assert "attention" not in make(plain()).losses(seen)
    found = make(plain(with_at=True)).losses(seen)["attention"]
    networks = NetworkPair(CHANNELS, CHANNELS, LEVELS, RMS)
    alone = build_method(recipe.AttentionTransferOptions(), networks).losses(seen)["attention"]
    torch.testing.assert_close(found.value, alone.value)
    assert found.weight == alone.weight == 1000.0
    options = {"weight": 3.0, "levels": "two_finest", "level_weights": "equal"}
    found = make(plain(with_at=True, at=options)).losses(seen)["attention"]
    alone = build_method(recipe.AttentionTransferOptions.model_validate(options), networks).losses(seen)["attention"]
    torch.testing.assert_close(found.value, alone.value)
    assert found.weight == 3.0


@given(seed=seeds, factor=st.floats(0.01, 100))
def test_automatic_scale_ignores_the_magnitude_of_the_teachers_features(seed: int, factor: float) -> None:
    teacher, student = output(seed), output(seed + 1)
    larger = DetectorOutput(tuple(factor * level for level in teacher.pyramid), *_heads(teacher))
    values = []
    for seen_teacher, rms in ((teacher, RMS), (larger, tuple(factor * value for value in RMS))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            method = build_method(recipe.IfkdOptions(), NetworkPair(CHANNELS, CHANNELS, LEVELS, rms)).eval()
        values.append(method.losses(make_batch(student, seen_teacher, embedding=embedding(0)))["feature"].value)
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)


def test_random_draws_of_fdr_depend_on_the_iteration_alone() -> None:
    teacher, student = output(0), output(1)

    def value(method: IfkdMethod, iteration: int) -> float:
        return method.losses(make_batch(student, teacher, iteration=iteration))["feature"].value.item()

    def with_p(p: float) -> IfkdMethod:
        return make(plain(fdr={"p": p, "levels": ["p3"], "filter": "none"}, hsm={"enabled": False}, warmup_iters=0))

    always, never, sometimes = with_p(1.0).train(), with_p(0.0).train(), with_p(0.5).train()
    applied, skipped = value(always, 0), value(never, 0)
    assert applied != skipped
    drawn = [value(sometimes, iteration) for iteration in range(200)]
    assert set(drawn) == {applied, skipped}
    assert 70 <= drawn.count(applied) <= 130
    assert [value(with_p(0.5).train(), iteration) for iteration in range(20)] == drawn[:20]
    assert value(sometimes.eval(), 1) == applied


def test_r_range_draws_a_window_for_each_call() -> None:
    teacher, student = output(0), output(1)
    method = make(plain(fdr={"r_range": [0.0, 1.0], "p": 1.0, "levels": ["p3"], "filter": "none"})).train()
    values = {
        method.losses(make_batch(student, teacher, iteration=iteration))["feature"].value.item()
        for iteration in range(40)
    }
    assert len(values) >= 4  # 13 rows make 7 different windows


def test_apply_to_both_reconstructs_the_student_too() -> None:
    """With equal maps and r = 0 FDR changes both sides equally; on the teacher alone the removed mean is the error."""
    teacher = output(0)
    both = make(plain(fdr={"r": 0.0, "apply_to": "both"}, hsm={"enabled": False}), identity=True)
    assert both.losses(make_batch(teacher, teacher))["feature"].value.item() < 1e-9
    alone = make(plain(fdr={"r": 0.0, "apply_to": "teacher"}, hsm={"enabled": False}), identity=True)
    assert alone.losses(make_batch(teacher, teacher))["feature"].value.item() > 1e-4


def test_filters_are_not_decayed_and_may_be_frozen() -> None:
    filtered = recipe.IfkdOptions.model_validate({"fdr": {"filter": "grid"}})
    groups = make(filtered).parameter_groups(0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    method = make(filtered)
    listed = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert len(listed) == len(list(method.parameters()))
    frozen = make(recipe.IfkdOptions.model_validate({"fdr": {"filter": "grid", "filter_trainable": False}}))
    assert [group["weight_decay"] for group in frozen.parameter_groups(0.1)] == [0.1]


def test_a_shared_adapter_is_one_convolution() -> None:
    shared = make(recipe.IfkdOptions.model_validate({"adapter": {"shared": True, "kernel": 1, "bias": False}}))
    assert [tuple(parameter.shape) for parameter in shared.adapters.parameters()] == [(CHANNELS, CHANNELS, 1, 1)]
    assert shared.losses(make_batch(output(1), output(0), embedding=embedding(2)))["feature"].value.isfinite()


def test_ablation_switches() -> None:
    config = plain(head={"enabled": False})
    terms = make(config).losses(make_batch(output(1), output(0)))
    assert terms["head"].value.item() == 0.0
    assert terms["feature"].value.item() > 0


# --- EDE and widths -----------------------------------------------------------------------------------------------


@given(seed=seeds, shape=st.sampled_from(((1, 1), (2, 3), (7, 11), (13, 21), (25, 42), (101, 67))))
@pytest.mark.parametrize("interp", ["bilinear", "area"])
def test_disturbance_is_between_0_and_1_without_gradient(interp: str, seed: int, shape: tuple[int, int]) -> None:
    seen = embedding(seed).requires_grad_()
    found = disturbance(seen, shape, interp=interp)
    assert found.shape == (2, 256, *shape)
    assert not found.requires_grad
    assert ((found > 0) & (found < 1)).all()
    torch.testing.assert_close(disturbance(seen, shape, interp=interp, center=True), found - 0.5, rtol=0, atol=1e-6)
    torch.testing.assert_close(disturbance(seen.flip(3), shape, interp=interp), found.flip(3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(disturbance(seen.flip(2), shape, interp=interp), found.flip(2), rtol=1e-5, atol=1e-6)


def test_disturbance_takes_the_sigmoid_before_the_resize() -> None:
    seen = torch.tensor([[-8.0, 8.0]]).view(1, 1, 1, 2).expand(1, 256, 1, 2)
    assert disturbance(seen, (1, 1))[0, 0, 0, 0].item() == pytest.approx(0.5)
    seen = torch.tensor([[-8.0, 0.0]]).view(1, 1, 1, 2).expand(1, 256, 1, 2)
    expected = (1 / (1 + math.exp(8)) + 0.5) / 2
    assert disturbance(seen, (1, 1), interp="area")[0, 0, 0, 0].item() == pytest.approx(expected)


def test_disturbance_enlarges_bilinearly() -> None:
    seen = embedding(0)
    plain_resize = nn.functional.interpolate(seen.sigmoid(), (17, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(disturbance(seen, (17, 30)), plain_resize, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [16, 64, 255])
def test_projection_to_another_width_is_orthogonal_fixed_and_deterministic(channels: int) -> None:
    torch.manual_seed(1)
    first = width_projection(channels)
    torch.manual_seed(2)
    second = width_projection(channels)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    rows = first[:, :, 0, 0]
    torch.testing.assert_close(rows @ rows.T, torch.eye(channels), rtol=0, atol=1e-5)
    method = make(recipe.IfkdOptions(), channels=channels, teacher_channels=channels)
    assert "projection" not in dict(method.named_parameters())
    assert "projection" not in method.state_dict()
    assert torch.equal(method.projection, first)


def test_the_papers_width_needs_no_projection() -> None:
    assert width_projection(256) is None
    assert make(recipe.IfkdOptions(), channels=16, teacher_channels=256).projection is None


@pytest.mark.parametrize(("student_width", "teacher_width"), [(8, 8), (8, 24), (24, 8), (8, 320), (16, 256)])
def test_losses_for_any_pair_of_widths(student_width: int, teacher_width: int) -> None:
    method = make(recipe.IfkdOptions(), channels=student_width, teacher_channels=teacher_width)
    student, teacher = output(1, channels=student_width), output(0, channels=teacher_width)
    terms = method.losses(make_batch(student, teacher, embedding=embedding(2)))
    assert terms["feature"].value.isfinite()
    assert terms["feature"].value > 0


def test_losses_work_under_autocast() -> None:
    method = make(recipe.IfkdOptions())
    seen = make_batch(output(1), output(0), embedding=embedding(2))
    exact = method.losses(seen)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.losses(seen)
    for name in ("feature", "head"):
        assert found[name].value.dtype == torch.float32
        torch.testing.assert_close(found[name].value, exact[name].value, rtol=0.02, atol=0.01)
