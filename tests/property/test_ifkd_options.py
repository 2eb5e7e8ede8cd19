"""IFKD: EDE from masks and as a gate, presets, and losses in several processes."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ifkd_laws import CHANNELS, RMS, SHAPES, embedding, make, make_batch, output, plain
from torch import Tensor, multiprocessing, nn

from ifkd import recipe
from ifkd.core.config import dump, parse
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.models import DetectorOutput


def mask_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(2, 1, 20, 32, generator=torch.Generator().manual_seed(seed))


# --- EDE from masks, and as a gate ---------------------------------------------------------------------------------


def test_a_mask_is_added_to_every_channel() -> None:
    teacher = output(0)
    method = make(plain(ede={"source": "mask", "weight": 2.0}, hsm={"enabled": False}), identity=True)
    found = method.losses(make_batch(teacher, teacher, embedding=mask_logits()))["feature"].value
    expected = torch.zeros(())
    for shape in SHAPES:
        disturbance = nn.functional.interpolate(
            mask_logits().sigmoid(), shape, mode="bilinear", align_corners=False, antialias=True
        )
        expected = expected + CHANNELS * (2.0 * disturbance).square().mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("source", ["mask", "embedding"])
def test_a_gate_multiplies_and_generates(residual: bool, source: str) -> None:
    """With an identity as first convolution and twice it as second, a gate is 2·relu(f·disturbance) (+ f)."""
    teacher = output(0)
    seen = mask_logits() if source == "mask" else embedding(1)
    ede = {"source": source, "form": "gate", "residual": residual, "levels": "three_coarsest", "weight": 0.5}
    method = make(plain(ede=ede, hsm={"enabled": False}), identity=True)
    assert method.gate is not None
    for convolution, factor in zip((method.gate.generation[0], method.gate.generation[2]), (1.0, 2.0), strict=True):
        nn.init.dirac_(convolution.weight)
        convolution.weight.data.mul_(factor)
        nn.init.zeros_(convolution.bias)
    found = method.losses(make_batch(teacher, teacher, embedding=seen))["feature"].value
    active = seen if source == "mask" else nn.functional.conv2d(seen, method.projection)
    expected = torch.zeros(())
    for features, shape in list(zip(teacher.pyramid, SHAPES, strict=True))[-3:]:
        disturbance = nn.functional.interpolate(active.sigmoid(), shape, mode="bilinear", antialias=True)
        target = 2 * (features * 0.5 * disturbance).relu() + (features if residual else 0)
        expected = expected + (target - features).square().sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gate_is_trained_with_weight_decay_and_exists_only_if_set() -> None:
    method = make(plain(ede={"form": "gate"}))
    found = method.losses(make_batch(output(1), output(0), embedding=embedding(2)))["feature"].value
    assert method.gate is not None
    gradients = torch.autograd.grad(found, list(method.gate.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    (group,) = method.parameter_groups(0.1)
    assert len(group["params"]) == len(list(method.parameters()))  # type: ignore[arg-type]
    assert make(plain()).gate is None
    assert make(plain(ede={"form": "gate", "enabled": False})).gate is None


def test_levels_are_chosen_by_place_in_either_family() -> None:
    for levels in recipe.LEVELS.values():
        assert recipe.select_levels("all", levels) == levels
        assert recipe.select_levels("two_finest", levels) == levels[:2]
        assert recipe.select_levels("three_coarsest", levels) == levels[2:]


def test_filters_exist_only_for_the_chosen_levels() -> None:
    method = make(recipe.IfkdOptions.model_validate({"fdr": {"filter": "grid", "levels": "two_finest"}}))
    assert list(method.filters) == ["p3", "p4"]


# --- presets -------------------------------------------------------------------------------------------------------


def test_values_of_a_file_override_the_preset() -> None:
    config = recipe.IfkdOptions.model_validate({"preset": "ifkd_released", "beta": 0.7, "fdr": {"r": 0.2}})
    assert (config.alpha, config.beta, config.warmup_iters) == (1e-4, 0.7, 0)
    assert (config.ede.source, config.ede.form, config.ede.levels) == ("mask", "gate", "three_coarsest")
    assert (config.fdr.r, config.fdr.p, config.fdr.apply_to, config.fdr.levels) == (0.2, 0.5, "both", "two_finest")
    assert (config.fdr.filter, config.fdr.filter_complex, config.fdr.filter_init) == ("channel", True, "gfnet")
    literal = recipe.IfkdOptions(preset="ifkd_paper_literal")
    assert (literal.fdr.filter_norm, literal.fdr.r_range, literal.fdr.p) == ("none", (0.0, 1.0), 1.0)
    assert (literal.warmup_iters, literal.adapter.shared, literal.alpha) == (0, True, 0.06)
    assert (config.feature_scale, literal.feature_scale, recipe.IfkdOptions().feature_scale) == ("none", "none", "auto")
    assert recipe.IfkdOptions(preset="ifkd") == recipe.IfkdOptions()
    with pytest.raises(ValueError, match="ifkd_paper_literal"):
        recipe.IfkdOptions.model_validate({"preset": "ifkd_relesed"})


@pytest.mark.parametrize("preset", list(recipe.PRESETS))
def test_a_preset_is_visible_in_the_effective_recipe(preset: recipe.Preset) -> None:
    config = recipe.IfkdOptions(preset=preset)
    text = dump(config)
    assert f'preset = "{preset}"' in text
    assert f"alpha = {config.alpha}" in text
    assert f'apply_to = "{config.fdr.apply_to}"' in text
    assert parse(config.model_dump(mode="json"), recipe.IfkdOptions, source="dump") == config


@pytest.mark.parametrize("preset", list(recipe.PRESETS))
def test_every_preset_has_finite_losses_and_gradients(preset: recipe.Preset) -> None:
    config = recipe.IfkdOptions(preset=preset)
    method = make(config).train()
    student = output(1)
    leaves = [level.requires_grad_() for level in student.pyramid + student.logits]
    seen = mask_logits() if config.ede.source == "mask" else embedding(2)
    terms = method.losses(make_batch(student, output(0), embedding=seen))
    total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    gradients = torch.autograd.grad(total, [*leaves, *method.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[: len(leaves)])


# --- several processes ---------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "image": {"norm": "image", "head": {"kind": "kl"}},
    "hw": {"norm": "hw", "with_at": True},
    "no mask": {"hsm": {"enabled": False}},
    "moebius": {"hsm": {"formula": "mobius"}},
    "released": {"preset": "ifkd_released"},
}


def gradients_of(config: recipe.IfkdOptions, rows: slice) -> list[Tensor]:
    """Return the gradients of some of four images in a training step."""

    def part(output_of_all: DetectorOutput) -> DetectorOutput:
        parts = (
            tuple(level[rows] for level in group)
            for group in (output_of_all.pyramid, output_of_all.logits, output_of_all.deltas)
        )
        return DetectorOutput(*parts)

    torch.manual_seed(3)
    method = build_method(config, NetworkPair(CHANNELS, CHANNELS, recipe.LEVELS["retinanet"], RMS)).train()
    assert isinstance(method, IfkdMethod)
    student, teacher = output(1, batch=4), output(0, batch=4)
    # The images differ in magnitude, so that a mask normalized in each process alone would give other weights.
    loud = torch.tensor([0.1, 0.5, 2.0, 5.0]).view(4, 1, 1, 1)
    teacher = DetectorOutput(tuple(level * loud for level in teacher.pyramid), teacher.logits, teacher.deltas)
    channels = 1 if config.ede.source == "mask" else 256
    seen = torch.randn(4, channels, 5, 8, generator=torch.Generator().manual_seed(2))
    terms = method.losses(make_batch(part(student), part(teacher), embedding=seen[rows], iteration=700))
    total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    trainable = [parameter for parameter in method.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(total, trainable, allow_unused=True))


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for name, options in VARIANTS.items():
        gradients = gradients_of(recipe.IfkdOptions.model_validate(options), slice(2 * rank, 2 * rank + 2))
        found[name] = [gradient for gradient in gradients if gradient is not None]
        for gradient in found[name]:
            torch.distributed.all_reduce(gradient)
            gradient.div_(2)
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, args=(port, str(folder)), nprocs=2)
    found: dict[str, list[Tensor]] = torch.load(folder / "gradients.pt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_two_processes_give_the_gradients_of_one(of_two_processes: dict[str, list[Tensor]], variant: str) -> None:
    alone = [
        gradient
        for gradient in gradients_of(recipe.IfkdOptions.model_validate(VARIANTS[variant]), slice(None))
        if gradient is not None
    ]
    assert len(of_two_processes[variant]) == len(alone)
    for ours, theirs in zip(of_two_processes[variant], alone, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * scale + 1e-9)


# --- the second detector -------------------------------------------------------------------------------------------


def test_losses_for_outputs_of_a_two_stage_detector() -> None:
    """P2 to P6 with three channels of objectness: losses are 0 for equal outputs, and the KL divergence otherwise."""
    levels = recipe.LEVELS["faster_rcnn"]

    def objectness(output_of_all: DetectorOutput) -> DetectorOutput:
        return DetectorOutput(
            output_of_all.pyramid, tuple(level[:, :3] for level in output_of_all.logits), output_of_all.deltas
        )

    def built(**options: Any) -> IfkdMethod:
        torch.manual_seed(3)
        method = build_method(plain(**options), NetworkPair(CHANNELS, CHANNELS, levels, RMS))
        assert isinstance(method, IfkdMethod)
        for adapter in method.adapters:
            nn.init.dirac_(adapter.weight)
            nn.init.zeros_(adapter.bias)
        return method.eval()

    teacher, student = objectness(output(0)), objectness(output(1))
    same = built(head={"kind": "kl"}, hsm={"enabled": False}).losses(make_batch(teacher, teacher))
    assert same["feature"].value.item() == 0.0
    assert same["head"].value.item() == pytest.approx(0.0, abs=1e-6)
    found = built(head={"kind": "kl"}, hsm={"enabled": False}).losses(make_batch(student, teacher))
    expected = torch.zeros(())
    for ours, theirs in zip(student.logits, teacher.logits, strict=True):
        kl = torch.distributions.kl_divergence(
            torch.distributions.Bernoulli(logits=theirs), torch.distributions.Bernoulli(logits=ours)
        )
        expected = expected + kl.sum(1).mean()
    torch.testing.assert_close(found["head"].value, expected, rtol=1e-4, atol=1e-5)
    method = built(fdr={"filter": "grid", "levels": ["p2", "p6"]})
    assert list(method.filters) == ["p2", "p6"]
    assert method.losses(make_batch(student, teacher))["feature"].value > 0
