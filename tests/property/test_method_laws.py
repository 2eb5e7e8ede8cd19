"""Properties of the methods that IFKD is compared with."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from method_fixtures import (
    BASELINES,
    BOXES,
    FAMILIES,
    cases,
    detectors,
    make_batch,
    method,
    options,
    output,
    targets,
    with_identity,
)
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead

from ifkd import recipe
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.distillation.methods.arsd import area_weight, level_of_object
from ifkd.distillation.methods.attention_transfer import attention
from ifkd.distillation.methods.crosskd import match_statistics
from ifkd.distillation.methods.cwd import channel_divergence
from ifkd.distillation.methods.fgd import inherit, object_masks
from ifkd.distillation.methods.fkd import NonLocal
from ifkd.distillation.methods.pkd import standardize
from ifkd.models import DetectorOutput

WEIGHTS = {
    "fitnet": ("weight",),
    "at": ("weight",),
    "fkd": ("feature", "attention", "non_local"),
    "fgd": ("foreground", "background", "attention", "context"),
    "frs": ("feature", "head"),
    "arsd": ("feature", "head", "boxes"),
    "insdist": ("foreground", "background", "relation"),
    "pkd": ("weight",),
    "cwd": ("weight",),
    "crosskd": ("classes", "boxes"),
}
"""Names of each method's weights."""
ROOTS = ("fkd", "insdist", "pkd", "arsd")
"""Methods whose terms are not means over images: roots and deviations of batches; ARSD divides by 2 n + 1."""


@pytest.mark.parametrize(("name", "family"), cases())
def test_layers_can_be_unused_only_by_terms_without_weight(name: str, family: recipe.Family) -> None:
    built = method(name, family)
    terms = built.losses(make_batch(output(family, 1, leaf=True), output(family, 2)))
    torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert not built.can_have_unused_layers
    assert all(method(name, family, **{weight: 0}).can_have_unused_layers for weight in WEIGHTS[name])


@pytest.mark.parametrize(("name", "family"), cases())
def test_terms_and_gradients_vanish_for_equal_networks(name: str, family: recipe.Family) -> None:
    """With equal features and logits and identity adapters every term is minimal and has no gradient."""
    networks = detectors(family)
    networks = (networks[1], networks[1])
    built = with_identity(method(name, family, pair=networks)).eval()
    teacher = output(family, 1)
    if name == "crosskd":  # it is minimal for logits that the head itself computes
        with torch.no_grad():
            head = networks[1].head
            assert isinstance(head, RetinaNetHead)
            classes, boxes = head.classification_head, head.regression_head
            teacher = DetectorOutput(
                teacher.pyramid,
                tuple(classes.cls_logits(classes.conv(level)) for level in teacher.pyramid),
                tuple(boxes.bbox_reg(boxes.conv(level)) for level in teacher.pyramid),
            )
    student = DetectorOutput(
        *(tuple(level.clone().requires_grad_() for level in part) for part in (
            teacher.pyramid, teacher.logits, teacher.deltas,
        ))
    )  # fmt: skip
    terms = built.losses(make_batch(student, teacher))
    if name != "frs":  # the minimum of the head's cross-entropy is the teacher's entropy
        assert all(term.value.item() == pytest.approx(0.0, abs=2e-3) for term in terms.values())
    sum(term.value for term in terms.values()).backward()  # type: ignore[union-attr]
    gradients = [level.grad for part in (student.pyramid, student.logits) for level in part if level.grad is not None]
    if name not in ("fkd", "insdist", "crosskd"):  # roots and GIoU have no gradient at their minimum
        assert all(gradient.abs().amax() <= 1e-5 for gradient in gradients)


@pytest.mark.parametrize(("name", "family"), cases())
@pytest.mark.parametrize(
    "boxes",
    [((), ()), (((5.0, 5.0, 6.0, 6.0),), ((159.0, 95.0, 160.0, 96.0),)), (BOXES, BOXES[:1]), (BOXES * 2, ())],
    ids=["no objects", "one pixel", "overlapping", "doubled"],
)
def test_losses_and_gradients_are_finite(name: str, family: recipe.Family, boxes: tuple[()]) -> None:
    built = method(name, family)
    student = output(family, 2, leaf=True)
    terms = built.losses(make_batch(student, output(family, 3), targets(*boxes)))
    total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    assert total.isfinite()
    total.backward()
    assert all(level.grad is None or level.grad.isfinite().all() for level in student.pyramid)
    learns = any(level.grad is not None and level.grad.abs().sum() > 0 for level in student.pyramid)
    assert learns == (total > 0) == (name != "arsd" or any(boxes))  # ARSD uses objects alone
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in built.parameters())


@pytest.mark.parametrize(("name", "family"), cases())
def test_the_teacher_has_no_gradient(name: str, family: recipe.Family) -> None:
    networks = detectors(family)
    built = method(name, family, pair=networks)
    for part in networks:
        part.requires_grad_(requires_grad=False)
    teacher = output(family, 4, leaf=False)
    terms = built.losses(make_batch(output(family, 5, leaf=True), teacher))
    torch.stack([term.value for term in terms.values()]).sum().backward()
    assert all(parameter.grad is None for parameter in networks[1].parameters())
    assert not [name for name in built.state_dict() if name.startswith(("_student", "_teacher", "_networks", "_detec"))]


@pytest.mark.parametrize(("name", "family"), cases())
def test_a_term_of_weight_0_is_detached(name: str, family: recipe.Family) -> None:
    built = method(name, family, **dict.fromkeys(WEIGHTS[name], 0.0))
    terms = built.losses(make_batch(output(family, 6, leaf=True), output(family, 7)))
    assert terms
    assert all(term.weight == 0.0 and not term.value.requires_grad for term in terms.values())


def doubled(one: DetectorOutput) -> DetectorOutput:
    parts = (one.pyramid, one.logits, one.deltas)
    return DetectorOutput(*(tuple(torch.cat([level] * 2) for level in part) for part in parts))


@pytest.mark.parametrize(("name", "family"), [case for case in cases() if case[0] not in ROOTS])
def test_a_repeated_image_does_not_change_the_terms(name: str, family: recipe.Family) -> None:
    built = method(name, family)
    student, teacher = output(family, 8, images=1), output(family, 9, images=1)
    once = built.losses(make_batch(student, teacher, targets(BOXES)))
    twice = built.losses(make_batch(doubled(student), doubled(teacher), targets(BOXES, BOXES)))
    for term, value in once.items():
        assert twice[term].value.item() == pytest.approx(value.value.item(), rel=1e-4)


@pytest.mark.parametrize("boxes", [BOXES, ()])
@pytest.mark.parametrize(("name", "family"), [case for case in cases() if case[0] not in {"fkd", "insdist", "pkd"}])
def test_two_ranks_of_one_image_have_the_terms_of_two_images(
    name: str, family: recipe.Family, boxes: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without objects, where counts that divide a term are limited."""
    built = method(name, family)
    student, teacher = output(family, 8, images=1), output(family, 9, images=1)
    alone = built.losses(make_batch(doubled(student), doubled(teacher), targets(boxes, boxes)))
    monkeypatch.setattr("ifkd.compute.distributed._is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda total: total.mul_(2)
    )  # the other rank has the same image
    of_a_rank = built.losses(make_batch(student, teacher, targets(boxes)))
    for term, value in alone.items():
        assert of_a_rank[term].value.item() == pytest.approx(value.value.item(), rel=1e-4)


@pytest.mark.parametrize("standardized", [standardize, lambda maps: match_statistics(maps, 2 * maps.detach() + 1)])
def test_statistics_of_two_ranks_are_those_of_one_batch(
    standardized: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads stand for the ranks; their values and gradients are those of one process with all images."""
    maps, weights = torch.randn(2, 4, 3, 3, 5, generator=torch.Generator().manual_seed(1))
    barrier, local, sent = threading.Barrier(2, timeout=20), threading.local(), [torch.zeros(0)] * 2

    def all_reduce(total: Tensor) -> None:
        sent[local.rank] = total.clone()
        barrier.wait()
        total.copy_(sent[0] + sent[1])
        barrier.wait()

    def of_rank(rank: int) -> tuple[Tensor, Tensor]:
        local.rank = rank
        return values_and_gradient(slice(2 * rank, 2 * rank + 2))

    def values_and_gradient(rows: slice) -> tuple[Tensor, Tensor]:
        own = maps[rows].clone().requires_grad_()
        values = standardized(own)
        (values * weights[rows]).mean().backward()
        return values.detach(), own.grad

    whole, gradient = values_and_gradient(slice(None))
    monkeypatch.setattr("ifkd.compute.distributed._is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with ThreadPoolExecutor(2) as threads:
        (first, first_gradient), (last, last_gradient) = threads.map(of_rank, range(2))
    torch.testing.assert_close(torch.cat([first, last]), whole)
    torch.testing.assert_close(torch.cat([first_gradient, last_gradient]) / 2, gradient)


def test_fkd_normalizes_a_single_location_by_its_running_statistics() -> None:
    """One image with tiles as small as the coarsest level's stride."""
    block = NonLocal(4, inner=2, pool=2)
    torch.nn.init.ones_(block.back[1].weight)
    block(torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)))
    location = torch.arange(4.0).view(1, 4, 1, 1)
    trained = block(location)
    assert torch.equal(trained, block.eval()(location))


@pytest.mark.parametrize("factor", [0.01, 13.0])
def test_at_and_pkd_ignore_a_factor(factor: float) -> None:
    features = output("retinanet", 10).pyramid[0]
    torch.testing.assert_close(attention(factor * features), attention(features))
    torch.testing.assert_close(standardize(factor * features), standardize(features), atol=1e-3, rtol=1e-3)


SCALED = ("fitnet", "fkd", "fgd", "frs", "arsd", "insdist", "cwd")
"""Methods whose terms depend on the scale of the features."""


def scaled_output(family: recipe.Family, seed: int, factor: float) -> DetectorOutput:
    one = output(family, seed)
    return DetectorOutput(tuple(factor * level for level in one.pyramid), one.logits, one.deltas)


@pytest.mark.parametrize("factor", [0.01, 20.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCALED)
def test_the_magnitude_of_both_pyramids_does_not_change_the_losses(
    name: str, family: recipe.Family, factor: float
) -> None:
    """A pair of networks with features `factor` times as large has the same losses as that of a pretrained pyramid."""
    networks = detectors(family)
    values = []
    for size in (1.0, factor):
        pair = NetworkPair(16, 16, recipe.LEVELS[family], (size,) * 5, detectors=networks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            built = build_method(options(name, feature_scale="auto", reference_rms=0.3), pair)
        seen = make_batch(scaled_output(family, 1, size), scaled_output(family, 2, size))
        values.append({term: one.value.item() for term, one in built.losses(seen).items()})
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    raw = method(name, family, pair=networks, feature_scale="none")
    published = raw.losses(make_batch(scaled_output(family, 1, 0.3), scaled_output(family, 2, 0.3)))
    assert values[0] == pytest.approx({term: one.value.item() for term, one in published.items()}, rel=1e-4)


def test_methods_that_need_it_scale_both_pyramids_by_default() -> None:
    scales = {name: getattr(options(name), "feature_scale", None) for name in BASELINES}
    assert scales == {
        **dict.fromkeys(("fitnet", "fkd", "fgd", "frs", "arsd", "insdist"), "auto"),
        **dict.fromkeys(("at", "pkd", "crosskd"), None),
        "cwd": "none",
    }


def at_gradients(level_weights: str) -> list[float]:
    """Return the norm of AT's gradient at each level, for pyramids of one kind of features at all levels."""
    student = output("retinanet", 2, leaf=True)
    built = method("at", "retinanet", level_weights=level_weights)
    built.losses(make_batch(student, output("retinanet", 3)))["attention"].value.backward()
    return [float(level.grad.norm()) for level in student.pyramid if level.grad is not None]


def test_coarse_maps_do_not_rule_attention_transfer() -> None:
    """With the mean over levels the coarsest map has most of the gradient, although it has 4 of 325 cells."""
    equal, cells = at_gradients("equal"), at_gradients("cells")
    assert equal[-1] > 50 * equal[0]
    assert all(gradient < cells[0] for gradient in cells[1:])


def test_pkd_ignores_scale_and_offset_of_each_channel() -> None:
    features = output("retinanet", 12).pyramid[0]
    scale, offset = torch.rand(1, features.shape[1], 1, 1) + 0.5, torch.randn(1, features.shape[1], 1, 1)
    torch.testing.assert_close(standardize(scale * features + offset), standardize(features), atol=1e-4, rtol=1e-4)


def test_cwd_ignores_the_offset_of_each_channel() -> None:
    student, teacher = output("retinanet", 13).pyramid[0], output("retinanet", 14).pyramid[0]
    offset = torch.randn(len(student), student.shape[1], 1, 1)
    torch.testing.assert_close(
        channel_divergence(student + offset, teacher, 1.0), channel_divergence(student, teacher, 1.0)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_fgd_masks_sum_to_one_and_weights_are_inherited(family: recipe.Family) -> None:
    shape = (12, 20)
    foreground, background = object_masks(targets(BOXES[2:], BOXES, ()), shape, (96, 160))
    torch.testing.assert_close(background.sum(dim=(1, 2)), torch.ones(3))
    cells = foreground[0] > 0
    assert foreground[0].sum().item() == pytest.approx(1.0)
    assert set(foreground[0][cells].tolist()) == {1 / int(cells.sum())}
    assert not ((foreground > 0) & (background > 0)).any()
    networks = detectors(family)
    taken = inherit(*networks)
    own, given = networks[0].state_dict(), networks[1].state_dict()
    assert taken
    assert all(torch.equal(own[name], given[name]) for name in taken)
    assert not [name for name in taken if name.startswith("backbone.body")]


def test_arsd_weights_small_objects_more_and_assigns_large_ones_to_coarse_levels() -> None:
    sides = torch.tensor([1.0, 4, 16, 40, 64, 90, 128, 256, 512])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    weights, levels = area_weight(boxes, (512, 512)), level_of_object(boxes, (512, 512), 5)
    assert (weights > 1).all()
    assert (weights <= 2).all()
    assert (weights.diff() < 0).all()
    assert (levels.diff() >= 0).all()
    assert (levels[0], levels[-1]) == (0, 4)
