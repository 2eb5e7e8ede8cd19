"""Variants of comparisons, ablations and sweeps."""

from pathlib import Path

import pytest

from ifkd.core.config import load
from ifkd.core.errors import UsageError
from ifkd.distillation.methods import METHODS as METHOD_CLASSES
from ifkd.recipe import Recipe
from ifkd.study.variants import (
    METHODS,
    ablation_variants,
    comparison_variants,
    custom_variant,
    require_distinct,
    supported_methods,
    sweep_variants,
)

CONFIGS = Path(__file__).parents[4] / "configs"


def test_every_method_can_be_compared() -> None:
    assert set(METHODS) == set(METHOD_CLASSES) - {"none"}
    variants = comparison_variants()
    assert [one.label for one in variants] == ["student", *METHODS]
    assert variants[-1].overrides == ()
    assert variants[3].overrides[0] == 'distillation.method={name="fkd"}'


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ifkd"])
def test_published_weights_are_constant_and_not_multiplied(recipe: Path, name: str) -> None:
    """A recipe with a multiple of its own, as a tuned IFKD has, leaves the other methods as published."""
    _, variant = comparison_variants([name])
    found = load(recipe, Recipe, ("distillation.balance.multiple=3.0", *variant.overrides)).distillation
    assert (found.method.name, found.balance.form, found.balance.multiple) == (name, "constant", 1.0)


def test_methods_that_a_recipe_refuses_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    two_stages = next(CONFIGS.glob("paper/*faster_rcnn*.toml"))
    assert set(supported_methods(two_stages)) == {*METHODS} - {"crosskd"}
    assert "crosskd is left out" in caplog.text
    assert supported_methods(CONFIGS / "demo.toml") == METHODS


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match=r"no method 'fdg'.*Did you mean 'f[gk]d'"):
        comparison_variants(["ifkd", "fdg"])
    with pytest.raises(UsageError, match="'gamma' cannot be swept: expected alpha or beta"):
        sweep_variants("gamma")


def test_the_ablation_has_the_rows_of_table_4() -> None:
    labels = [one.label for one in ablation_variants(with_at=True)]
    assert labels == ["student", "at", "at+ede", "at+fdr", "at+hsm", "at+ede+fdr", "at+ede+hsm", "at+fdr+hsm",
                      "at+ede+fdr+hsm"]  # fmt: skip
    at = ablation_variants(with_at=True)[1]
    assert {*at.overrides} > {
        "distillation.method.with_at=true", "distillation.method.alpha=0", "distillation.method.beta=0",
    }  # fmt: skip
    row = ablation_variants(with_at=False)[2]
    assert row.label == "ede"
    assert set(row.overrides) == {
        "distillation.method.ede.enabled=true", "distillation.method.fdr.enabled=false",
        "distillation.method.hsm.enabled=false", "distillation.method.with_at=false",
    }  # fmt: skip


def test_a_sweep_has_one_variant_per_value() -> None:
    assert [one.value for one in sweep_variants("beta", [0.2, 0.4])] == [None, 0.2, 0.4]
    assert [one.value for one in sweep_variants("beta")] == [None, 0.1, 0.3, 0.5, 0.7, 0.9]


def test_the_values_of_figure_5_are_swept_beside_the_other_weight_of_the_paper(recipe: Path) -> None:
    """Also where the recipe has multiples of the task's gradient instead."""
    balanced = ('distillation.balance={form="gradient",multiple=2.0}', "distillation.method.alpha=3.0")
    for variant in sweep_variants("beta")[1:]:
        found = load(recipe, Recipe, (*balanced, *variant.overrides)).distillation
        assert (found.balance.form, found.balance.multiple) == ("constant", 1.0)
        assert (found.method.alpha, found.method.beta) == (0.06, variant.value)
    own = load(recipe, Recipe, (*balanced, *sweep_variants("beta", [0.2])[1].overrides)).distillation
    assert (own.balance.form, own.balance.multiple, own.method.alpha, own.method.beta) == ("gradient", 2.0, 3.0, 0.2)


def test_a_variant_of_a_user_has_a_label_and_values() -> None:
    variant = custom_variant("no-head", ["distillation.method.beta=0"])
    assert (variant.label, variant.overrides) == ("no-head", ("distillation.method.beta=0",))
    with pytest.raises(UsageError, match="must be the name of a folder: got a/b"):
        custom_variant("a/b", ["distillation.method.beta=0"])
    for label, overrides in (("no-head", []), ("distillation.method.beta=0", ["distillation.method.alpha=0"])):
        with pytest.raises(UsageError, match="needs a label and at least one KEY=VALUE"):
            custom_variant(label, overrides)


@pytest.mark.parametrize("label", ["teacher", "student", "pkd"])
def test_two_variants_of_one_label_are_refused(label: str) -> None:
    with pytest.raises(UsageError, match=f"needs a label of its own: got {label}"):
        require_distinct((*comparison_variants(["pkd"]), custom_variant(label, ["seed=3"])))
