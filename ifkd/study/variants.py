"""Variants of a recipe that a study trains and compares."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ifkd.core.config import load
from ifkd.core.errors import ConfigError, UsageError, did_you_mean
from ifkd.recipe import Recipe
from ifkd.recipe.value_types import FolderName

METHODS = ("fitnet", "at", "fkd", "fgd", "frs", "arsd", "insdist", "pkd", "cwd", "crosskd", "ifkd")
"""All distillation methods."""
PARTS = ("ede", "fdr", "hsm")
"""The parts of IFKD that an ablation switches on and off."""
ABLATION = ((), ("ede",), ("fdr",), ("hsm",), ("ede", "fdr"), ("ede", "hsm"), ("fdr", "hsm"), PARTS)
"""Rows of the paper's Table 4: the parts of IFKD that are on."""
SWEEPS: dict[str, tuple[float, ...]] = {"alpha": (0.01, 0.02, 0.04, 0.06, 0.08, 0.1), "beta": (0.1, 0.3, 0.5, 0.7, 0.9)}
"""Parameter -> values of the paper's Figure 5, as far as they are published."""


PAPER_WEIGHTS = {"alpha": 0.06, "beta": 0.5}
"""The paper's weights."""
CONSTANT = 'distillation.balance.form="constant"', "distillation.balance.multiple=1.0"
"""Overrides for published weights, which are no multiples of a gradient and have no factor."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a study's table: a label, and the recipe values that differ."""

    label: str
    """Also the prefix of its run folders' names."""
    overrides: tuple[str, ...]
    """KEY=VALUE overrides of the recipe."""
    parameter: str | None = None
    """Swept parameter, in a sweep."""
    value: float | None = None
    """Value of the swept parameter."""


PLAIN = Variant("student", ('distillation.method={name="none"}',))
"""The student trained without a teacher: the baseline of every study."""


def comparison_variants(methods: Sequence[str] = METHODS) -> tuple[Variant, ...]:
    """Return the plain student and one variant per method; IFKD keeps the recipe's options.

    Raises:
        UsageError: A method is unknown.
    """
    for name in methods:
        if name not in METHODS:
            known, hint = f"some of {', '.join(METHODS)}", did_you_mean(name, METHODS) or None
            raise UsageError(f"There is no method {name!r}", expected=known, hint=hint)
    return PLAIN, *(Variant(name, () if name == "ifkd" else _published(name)) for name in methods)


def supported_methods(recipe: Path, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the methods that a recipe allows; the others, such as CrossKD for Faster R-CNN, are logged.

    Raises:
        ConfigError: The recipe itself is invalid.
    """
    load(recipe, Recipe, overrides)
    supported = []
    for variant in comparison_variants()[1:]:
        try:
            load(recipe, Recipe, (*overrides, *variant.overrides))
        except ConfigError as error:
            logger.warning("%s is left out: %s", variant.label, error)
        else:
            supported.append(variant.label)
    return tuple(supported)


def _published(name: str) -> tuple[str, ...]:
    """Return the overrides that give a method its published weights."""
    return f'distillation.method={{name="{name}"}}', *CONSTANT


def custom_variant(label: str, overrides: Sequence[str]) -> Variant:
    """Return a variant that a user describes.

    Raises:
        UsageError: The label cannot be the prefix of a folder's name, or there are no overrides.
    """
    try:
        TypeAdapter(FolderName).validate_python(label)
    except ValidationError as error:
        raise UsageError("The label of a variant must be the name of a folder", got=label) from error
    if "=" in label or not overrides:
        raise UsageError("A variant needs a label and at least one KEY=VALUE", got=" ".join([label, *overrides]))
    return Variant(label, tuple(overrides))


def require_distinct(variants: Sequence[Variant]) -> None:
    """Refuse two variants of one label.

    Raises:
        UsageError: A label occurs twice, or is that of the teacher.
    """
    labels = ["teacher", *(variant.label for variant in variants)]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError("Each variant needs a label of its own", got=twice[0])


def ablation_variants(*, with_at: bool) -> tuple[Variant, ...]:
    """Return the plain student and the rows of Table 4, with or without attention transfer (AT) in each row.

    The row of AT alone has neither L_feat nor L_head (alpha = beta = 0).
    """
    variants = [PLAIN]
    for enabled in ABLATION:
        overrides = [f"distillation.method.{part}.enabled={str(part in enabled).lower()}" for part in PARTS]
        overrides.append(f"distillation.method.with_at={str(with_at).lower()}")
        if with_at and not enabled:
            overrides += ["distillation.method.alpha=0", "distillation.method.beta=0"]
        names = ("at", *enabled) if with_at else enabled or ("none",)
        variants.append(Variant("+".join(names), tuple(overrides)))
    return tuple(variants)


def sweep_variants(parameter: str, values: Sequence[float] = ()) -> tuple[Variant, ...]:
    """Return the plain student and IFKD with each value of alpha or beta.

    The default values are those of Figure 5, which are constant weights, beside the paper's value of the other weight;
    others have the recipe's form of balance and its other weight.

    Raises:
        UsageError: The parameter is unknown.
    """
    if parameter not in SWEEPS:
        raise UsageError(f"{parameter!r} cannot be swept", expected=" or ".join(SWEEPS))
    others = [f"distillation.method.{name}={value}" for name, value in PAPER_WEIGHTS.items() if name != parameter]
    published = () if values else (*CONSTANT, *others)
    return PLAIN, *(
        Variant(f"{parameter}={value:g}", (f"distillation.method.{parameter}={value!r}", *published), parameter, value)
        for value in values or SWEEPS[parameter]
    )
