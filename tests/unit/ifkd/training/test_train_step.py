"""Summaries of the loss terms of a training step."""

import pytest
import torch
from method_fixtures import FAMILIES, make_batch, method, output
from torch.distributions import Bernoulli

from ifkd import recipe
from ifkd.distillation.methods import Term
from ifkd.training.train_step import summarize_losses


def test_a_ratio_is_that_of_the_part_that_a_student_can_reduce() -> None:
    """The task's loss is 2; of the head's 2.14 the teacher's entropy is 2.05. Two parts are averaged."""
    parts = [
        {
            "task/boxes": Term(torch.tensor(2.0 + sign), 1.0),
            "method/feature": Term(torch.tensor(100.0), 0.06),
            "method/head": Term(torch.tensor(2.14 + sign), 0.5, torch.tensor(2.05 + sign)),
        }
        for sign in (-0.5, 0.5)
    ]
    found = summarize_losses(parts)
    assert found["raw/head"] == pytest.approx(2.14)
    assert found["reducible/head"] == pytest.approx(0.09, rel=1e-5)
    assert found["ratio/head"] == pytest.approx(0.5 * 0.09 / 2, rel=1e-5)
    assert found["ratio/feature"] == pytest.approx(3.0)
    assert "reducible/feature" not in found
    assert found["total"] == pytest.approx(2 + 6 + 1.07)


@pytest.mark.parametrize("name", ["ifkd", "frs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_with_the_teachers_logits_has_nothing_to_reduce(name: str, family: recipe.Family) -> None:
    """The value is then the teacher's entropy, here from torch.distributions; otherwise the rest is a KL divergence."""
    teacher, other = output(family, 1), output(family, 2)
    built = method(name, family, **({"hsm": {"enabled": False}} if name == "ifkd" else {}))
    same = built.losses(make_batch(teacher, teacher))["head"]
    assert same.value > 0
    assert float(same.reducible) == pytest.approx(0.0, abs=1e-5)
    term = built.losses(make_batch(other, teacher))["head"]
    expected = 0.0
    for ours, theirs in zip(other.logits, teacher.logits, strict=True):
        target = Bernoulli(logits=theirs.double())
        divergence = torch.distributions.kl_divergence(target, Bernoulli(logits=ours.double())).sum(1)
        weights = torch.ones_like(divergence) if name == "ifkd" else target.probs.amax(1)
        expected += float((weights * divergence).sum() / weights.sum())
    assert float(term.reducible) == pytest.approx(expected, rel=1e-4)
    assert not term.minimum.requires_grad
