"""Weights that follow from gradients at the student's pyramid."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from method_fixtures import BASELINES, FAMILIES, cases, detectors, method, targets
from torch import Tensor, multiprocessing

from ifkd import recipe
from ifkd.core.config import parse
from ifkd.distillation import TeacherOutputs
from ifkd.distillation.methods import Term
from ifkd.models import DetectorOutput
from ifkd.recipe.training_options import BalanceOptions
from ifkd.training.loss_balance import MEASURE_EVERY, LossBalance
from ifkd.training.train_step import TrainStep, total_loss

PLAIN = torch.autocast("cpu", enabled=False)
SMALL = ((10.0, 12.0, 70.0, 60.0),)


def balance(form: str = "gradient", multiple: float = 1.0, *, by_term: bool = True, scale: float = 1.0) -> LossBalance:
    options = BalanceOptions.model_validate({"form": form, "multiple": multiple})
    return LossBalance(options, by_term=by_term, loss_scale=lambda: scale)


def maps() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, side, side, requires_grad=True) for side in (4, 2)]


def terms(pyramid: list[Tensor], *, warmup: float = 1.0) -> dict[str, Term]:
    """Return a task of two losses, and a method of a large and a small term on all levels and on one."""
    return {
        "task/a": Term(pyramid[0].sum(), 1.0),
        "task/b": Term((2 * pyramid[1]).sum(), 1.0),
        "method/feature": Term(500 * sum((one**2).sum() for one in pyramid), 0.5 * warmup, warmup=warmup),
        "method/head": Term((0.01 * pyramid[1] ** 3).sum(), 2.0 * warmup, warmup=warmup),
    }


def norm(loss: Tensor, pyramid: list[Tensor]) -> float:
    """Return the norm of a loss's gradient at all levels together."""
    parts = torch.autograd.grad(loss, pyramid, retain_graph=True, allow_unused=True)
    return float(torch.cat([part.flatten() for part in parts if part is not None]).norm())


def weighted(found: dict[str, Term], name: str) -> Tensor:
    return found[name].weight * found[name].value


@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("multiple", [0.3, 1.0, 4.0])
def test_each_terms_gradient_is_its_weight_times_the_multiple_of_the_tasks(multiple: float, scale: float) -> None:
    pyramid = maps()
    seen = terms(pyramid)
    balanced = balance(multiple=multiple, scale=scale)
    balanced.measure(seen, pyramid, 0)
    found = balanced.weigh(seen)
    task = norm(seen["task/a"].value + seen["task/b"].value, pyramid)
    assert norm(weighted(found, "method/feature"), pyramid) == pytest.approx(0.5 * multiple * task, rel=1e-5)
    assert norm(weighted(found, "method/head"), pyramid) == pytest.approx(2.0 * multiple * task, rel=1e-5)
    assert found["task/a"].weight == found["task/b"].weight == 1.0
    logged = balanced.summarize(found)
    assert logged["gradient/feature"] == pytest.approx(0.5 * multiple, rel=1e-5)
    assert logged["gradient/head"] == pytest.approx(2.0 * multiple, rel=1e-5)
    assert set(logged) == {"gradient/feature", "gradient/head", "factor/feature", "factor/head"}


@pytest.mark.parametrize("warmup", [0.1, 1.0])
def test_all_terms_together_have_the_multiple_and_keep_their_proportions(warmup: float) -> None:
    """A warm-up is a factor of the result, not undone by it."""
    pyramid = maps()
    seen = terms(pyramid, warmup=warmup)
    balanced = balance(multiple=0.7, by_term=False)
    balanced.measure(seen, pyramid, 0)
    found = balanced.weigh(seen)
    together = weighted(found, "method/feature") + weighted(found, "method/head")
    task = norm(seen["task/a"].value + seen["task/b"].value, pyramid)
    assert norm(together, pyramid) == pytest.approx(0.7 * warmup * task, rel=1e-5)
    assert found["method/feature"].weight / found["method/head"].weight == pytest.approx(0.25)


def test_constant_weights_are_only_measured() -> None:
    pyramid = maps()
    seen = terms(pyramid)
    measured = balance("constant")
    measured.measure(seen, pyramid, 0)
    found = measured.weigh(seen)
    assert [(name, term.weight) for name, term in found.items()] == [(name, term.weight) for name, term in seen.items()]
    assert all(found[name].value is term.value for name, term in seen.items())
    task = norm(seen["task/a"].value + seen["task/b"].value, pyramid)
    ratio = norm(weighted(seen, "method/feature"), pyramid) / task
    assert measured.summarize(seen) == pytest.approx({"gradient/feature": ratio, "gradient/head": 0.0}, abs=0.1)
    assert ratio > 100


def test_constant_weights_are_multiplied() -> None:
    seen = terms(maps())
    found = balance("constant", multiple=3.0).weigh(seen)
    assert [term.weight for term in found.values()] == [1.0, 1.0, 3.0 * 0.5, 3.0 * 2.0]


def test_norms_are_averaged_over_measurements_and_infinite_ones_are_ignored() -> None:
    """After steps with 1 and 3 times the method's gradient the mean is 2 times it, and the weight half of the first."""
    pyramid = maps()
    balanced = balance()
    weights = []
    for iteration, factor in ((0, 1.0), (10, 3.0), (20, float("inf"))):
        seen = {"task/a": Term(pyramid[0].sum(), 1.0), "method/feature": Term((factor * pyramid[0]).sum(), 1.0)}
        balanced.measure(seen, pyramid, iteration)
        weights.append(balanced.weigh(seen)["method/feature"].weight)
    assert weights == pytest.approx([1.0, 0.5, 0.5])
    again = balance()
    again.load_state_dict(balanced.state_dict())
    assert again.weigh(seen)["method/feature"].weight == weights[-1]


def test_the_first_part_of_a_step_is_measured_at_intervals() -> None:
    pyramid = maps()
    balanced, due = balance(), []
    for iteration in range(3 * MEASURE_EVERY):
        for _ in range(2):  # two accumulated parts
            if balanced.is_due(iteration):
                due.append(iteration)
                balanced.measure(terms(pyramid, warmup=float(iteration > 0)), pyramid, iteration)
    # Terms of weight 0 at the start of a warm-up are measured in the next step.
    assert due == [0, 0, 1, MEASURE_EVERY, 2 * MEASURE_EVERY]


def test_a_term_with_nothing_left_to_teach_stays_small() -> None:
    pyramid = maps()
    rounding = Term((1e-9 * pyramid[0]).sum(), 0.5)
    balanced = balance()
    balanced.measure({"task/a": Term(pyramid[0].sum(), 1.0), "method/head": rounding}, pyramid, 0)
    assert balanced.weigh({"method/head": rounding})["method/head"].weight == 0.5 * 1e4


def test_terms_without_gradient_have_no_effect() -> None:
    pyramid = maps()
    seen = {"task/a": Term(pyramid[0].sum(), 1.0), "method/feature": Term(torch.tensor(3.0), 0.0)}
    for by_term in (True, False):
        balanced = balance(by_term=by_term)
        balanced.measure(seen, pyramid, 0)
        assert balanced.weigh(seen)["method/feature"].weight == 0.0


def step(name: str, family: recipe.Family, balanced: LossBalance, iteration: int = 10_000) -> tuple[Any, Any]:
    """Return the terms of a training step of small networks, and the student's output."""
    student, teacher = detectors(family)
    student.train()
    changes = {"ede": {"enabled": False}, "alpha": 1.0, "beta": 0.5} if name == "ifkd" else {}
    built = method(name, family, pair=(student, teacher), **changes)
    outputs: list[DetectorOutput] = []
    losses = student.task_losses
    student.task_losses = lambda output, objects: outputs.append(output) or losses(output, objects)  # type: ignore[method-assign,func-returns-value]
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        of_teacher = TeacherOutputs(teacher(images), None)
    torch.manual_seed(4)
    found = TrainStep(student, built, PLAIN, balanced)(images, targets(SMALL, SMALL), of_teacher, iteration)
    return found, outputs[0]


@pytest.mark.parametrize(("name", "family"), [*cases(), *(("ifkd", family) for family in FAMILIES)])
def test_every_methods_gradient_is_the_multiple_of_the_tasks(name: str, family: recipe.Family) -> None:
    """At the pyramid of a real student, for both detectors."""
    by_term = name == "ifkd"
    found, output = step(name, family, balance(multiple=0.5, by_term=by_term))
    pyramid = list(output.pyramid)
    task = norm(sum(term.value for key, term in found.items() if key.startswith("task/")), pyramid)
    total_loss(found).backward(retain_graph=True)
    names = [key for key in found if key.startswith("method/")]
    if by_term:
        wanted = {"method/feature": 0.5, "method/head": 0.25}
        assert {key: norm(weighted(found, key), pyramid) / task for key in names} == pytest.approx(wanted, rel=1e-3)
    else:
        assert norm(sum(weighted(found, key) for key in names), pyramid) / task == pytest.approx(0.5, rel=1e-3)


def test_ifkds_weights_are_multiples_where_the_recipe_does_not_set_them(recipe_values: dict[str, Any]) -> None:
    def weights(**changes: Any) -> tuple[float, float, float]:
        values = {**recipe_values["distillation"], **changes}
        parsed = parse({**recipe_values, "distillation": values}, recipe.Recipe, source="values")
        options = parsed.distillation.method
        assert isinstance(options, recipe.IfkdOptions)
        return options.alpha, options.beta, options.at.weight

    method_values = recipe_values["distillation"]["method"]
    assert weights() == (3.0, 0.5, 0.5)
    assert weights(balance={"multiple": 2.0}) == (3.0, 0.5, 0.5)
    assert weights(method={**method_values, "alpha": 2.0}) == (2.0, 0.5, 0.5)
    assert weights(balance={"form": "constant"}) == (0.06, 0.5, 1000.0)
    assert weights(method={**method_values, "preset": "ifkd_paper_literal"}) == (0.06, 0.5, 1000.0)
    assert len(BASELINES) == 10


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(_weights(slice(2 * rank, 2 * rank + 2)), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _weights(rows: slice) -> dict[str, float]:
    """Return the balanced weights for some of four images; losses are means over the images of all processes."""
    torch.manual_seed(0)
    pyramid = [torch.randn(4, 3, 4, 4)[rows].requires_grad_()]
    loud = torch.tensor([1.0, 2.0, 5.0, 20.0]).view(4, 1, 1, 1)[rows]
    seen = {
        "task/a": Term((loud * pyramid[0]).mean(), 1.0),
        "method/feature": Term((pyramid[0] ** 2 / loud).mean(), 1.0),
    }
    balanced = balance()
    balanced.measure(seen, pyramid, 0)
    return {name: term.weight for name, term in balanced.weigh(seen).items()}


@pytest.mark.slow
def test_two_processes_have_the_weights_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    one = _weights(slice(None))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(one, rel=1e-5)
    assert one["method/feature"] > 2
