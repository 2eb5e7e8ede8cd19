"""Variants of comparisons, ablations and sweeps."""

import pytest

from ifkd.core.errors import UsageError
from ifkd.distillation.methods import METHODS as METHOD_CLASSES
from ifkd.study.variants import (
    METHODS,
    ablation_variants,
    comparison_variants,
    custom_variant,
    require_distinct,
    sweep_variants,
)


def test_every_method_can_be_compared() -> None:
    assert set(METHODS) == set(METHOD_CLASSES) - {"none"}
    variants = comparison_variants()
    assert [one.label for one in variants] == ["student", *METHODS]
    assert variants[-1].overrides == ()
    assert variants[3].overrides == ('distillation.method={name="fkd"}', 'distillation.balance.form="constant"')


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match=r"no method 'fdg'.*Did you mean 'f[gk]d'"):
        comparison_variants(["ifkd", "fdg"])
    with pytest.raises(UsageError, match="'gamma' cannot be swept: expected alpha or beta"):
        sweep_variants("gamma")


def test_the_ablation_has_the_rows_of_table_4() -> None:
    labels = [one.label for one in ablation_variants(with_at=True)]
    assert labels == ["student", "at", "at+ede", "at+fdr", "at+hsm", "at+ede+fdr", "at+ede+hsm", "at+fdr+hsm",
                      "at+ede+fdr+hsm"]  # fmt: skip
    row = ablation_variants(with_at=False)[2]
    assert row.label == "ede"
    assert set(row.overrides) == {
        "distillation.method.ede.enabled=true", "distillation.method.fdr.enabled=false",
        "distillation.method.hsm.enabled=false", "distillation.method.with_at=false",
    }  # fmt: skip


def test_a_sweep_has_one_variant_per_value() -> None:
    assert [one.value for one in sweep_variants("beta", [0.2, 0.4])] == [None, 0.2, 0.4]
    assert [one.value for one in sweep_variants("beta")] == [None, 0.1, 0.3, 0.5, 0.7, 0.9]


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
