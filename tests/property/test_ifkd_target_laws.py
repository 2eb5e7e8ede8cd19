"""IFKD's feature target, the mask that HSM computes from it, and the normalization of the head's loss."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_fixtures import FAMILIES, detectors, method, targets
from method_fixtures import make_batch as batch_of_objects
from method_fixtures import output as output_of_family
from test_ifkd_laws import embedding, make, make_batch, output, slow_fdr
from torch import nn

from ifkd import recipe
from ifkd.distillation.ede import activate, resize
from ifkd.distillation.hsm import similarity_mask
from ifkd.distillation.methods.ifkd import IfkdMethod
from ifkd.models import DetectorOutput

seeds = st.integers(0, 2**31)


def options(**changes: Any) -> recipe.IfkdOptions:
    return recipe.IfkdOptions.model_validate(changes)


def all_pairs(built: IfkdMethod, student: DetectorOutput, teacher: DetectorOutput) -> Any:
    """Return the targets and the student's sides of eq. 12."""
    seen = make_batch(student, teacher, embedding=embedding(2))
    raw = built.scale_teacher(teacher.pyramid), built.adapters(student.pyramid)
    return built.feature_pairs(seen, *raw, torch.Generator())


@given(seed=seeds)
@pytest.mark.parametrize("apply_to", ["teacher", "both"])
@pytest.mark.parametrize("order", ["add_to_target", "ede_then_fdr"])
@pytest.mark.parametrize("filter_", ["grid", "none"])
def test_a_student_that_equals_its_target_has_a_mask_of_0(apply_to: str, order: str, filter_: str, seed: int) -> None:
    """With FDR and EDE on; the raw teacher would give such a student a mask as large as any other's."""
    changes: dict[str, Any] = {"fdr": {"apply_to": apply_to, "filter": filter_}, "ede": {"order": order}}
    built = make(options(**changes))
    teacher = output(seed)
    goals, _ = all_pairs(built, teacher, teacher)
    masks = built.similarity_masks(*built.compared((goals, [goal.clone() for goal in goals]), ([], [])))
    assert all((mask == 0).all() for mask in masks)
    raw = make(recipe.IfkdOptions.model_validate(changes | {"hsm": {"reference": "raw"}}))
    ours = raw.scale_teacher(teacher.pyramid)
    masks = raw.similarity_masks(*raw.compared((goals, goals), (ours, goals)))
    assert all(mask.mean() > 0.1 for mask in masks)


def test_losses_weigh_locations_by_the_chosen_mask() -> None:
    """Eq. 12 by hand: the mask of the two sides, divided by its sum."""
    student, teacher = output(1), output(0)
    built = make(options(fdr={"apply_to": "both"}))
    expected = torch.zeros(())
    for goal, side in zip(*all_pairs(built, student, teacher), strict=True):
        mask = similarity_mask(goal, side, built.config.hsm)
        expected = expected + (mask * (goal - side).square().sum(1, keepdim=True)).sum() / mask.sum()
    found = built.losses(make_batch(student, teacher, embedding=embedding(2)))["feature"].value
    torch.testing.assert_close(found, expected * 256 / 8, rtol=1e-4, atol=1e-4)


def test_the_order_of_figure_2() -> None:
    """The teacher is disturbed, then both sides pass FDR, then HSM compares them."""
    student, teacher = output(1), output(0)
    built = make(
        options(
            ede={"order": "ede_then_fdr", "center": True, "weight": 1.5},
            fdr={"apply_to": "both", "filter": "none", "r": 0.4},
            feature_scale="none",
        )
    )
    projected = nn.functional.conv2d(embedding(2), built.projection)
    adapted = built.adapters(student.pyramid)
    pairs = zip(*all_pairs(built, student, teacher), strict=True)
    for level, (goal, side) in enumerate(pairs):
        features, logits = teacher.pyramid[level], teacher.logits[level].double()
        disturbed = features + 1.5 * (resize(activate(projected), (features.shape[2], features.shape[3])) - 0.5)
        torch.testing.assert_close(goal.double(), slow_fdr(disturbed.double(), logits, 0.4), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(side.double(), slow_fdr(adapted[level].double(), logits, 0.4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["bce", "kl"])
def test_the_head_loss_over_positives(family: recipe.Family, kind: str) -> None:
    """The sum over all anchors and locations divided by the number of positive anchors, which is counted here."""
    boxes = ((10.0, 12.0, 70.0, 60.0), (100.0, 8.0, 150.0, 30.0))
    student, teacher = output_of_family(family, 1), output_of_family(family, 2)
    networks = detectors(family)
    built = method(
        "ifkd", family, pair=networks, head={"norm": "positives", "kind": kind}, hsm={"enabled": False}
    )  # fmt: skip
    term = built.losses(batch_of_objects(student, teacher, targets(boxes, ())))["head"]
    anchors = torch.cat(networks[0].anchors(student))
    count = sum(int((networks[0].assign_anchors(anchors, one) >= 0).sum()) for one in targets(boxes, ()))
    assert count > 1
    expected = 0.0
    for ours, theirs in zip(student.logits, teacher.logits, strict=True):
        goal = torch.distributions.Bernoulli(logits=theirs.double())
        expected += float(torch.distributions.kl_divergence(goal, torch.distributions.Bernoulli(logits=ours)).sum())
    assert float(term.reducible) == pytest.approx(expected / count, rel=1e-4)
    empty = built.losses(batch_of_objects(student, teacher, targets((), ())))["head"]
    assert float(empty.reducible) == pytest.approx(expected, rel=1e-4)
