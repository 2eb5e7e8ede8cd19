"""Variants of a recipe that a study trains and compares."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from ifkd.core.errors import UsageError, did_you_mean
from ifkd.recipe.value_types import FolderName

METHODS = ("fitnet", "at", "fkd", "fgd", "frs", "arsd", "insdist", "pkd", "cwd", "crosskd", "ifkd")
"""All distillation methods."""
PARTS = ("ede", "fdr", "hsm")
"""The parts of IFKD that an ablation switches on and off."""
ABLATION = ((), ("ede",), ("fdr",), ("hsm",), ("ede", "fdr"), ("ede", "hsm"), ("fdr", "hsm"), PARTS)
"""Rows of the paper's Table 4: the parts of IFKD that are on."""
SWEEPS: dict[str, tuple[float, ...]] = {"alpha": (0.01, 0.02, 0.04, 0.06, 0.08, 0.1), "beta": (0.1, 0.3, 0.5, 0.7, 0.9)}
"""Parameter -> values of the paper's Figure 5, as far as they are published."""


CONSTANT = 'distillation.balance.form="constant"'
"""Override for published weights, which are not multiples of a gradient."""


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


def _published(name: str) -> tuple[str, ...]:
    """Return the overrides that give a method its published weights."""
    return f'distillation.method={{name="{name}"}}', CONSTANT


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
    """Return the plain student and the rows of Table 4, with or without attention transfer (AT) in each row."""
    variants = [PLAIN]
    for enabled in ABLATION:
        if with_at and not enabled:
            variants.append(Variant("at", _published("at")))
            continue
        switches = tuple(f"distillation.method.{part}.enabled={str(part in enabled).lower()}" for part in PARTS)
        label = "+".join((("at",) if with_at else ()) + (enabled or ("none",)))
        variants.append(Variant(label, (*switches, f"distillation.method.with_at={str(with_at).lower()}")))
    return tuple(variants)


def sweep_variants(parameter: str, values: Sequence[float] = ()) -> tuple[Variant, ...]:
    """Return the plain student and IFKD with each value of alpha or beta.

    The default values are those of Figure 5, which are constant weights; others have the recipe's form of balance.

    Raises:
        UsageError: The parameter is unknown.
    """
    if parameter not in SWEEPS:
        raise UsageError(f"{parameter!r} cannot be swept", expected=" or ".join(SWEEPS))
    form = () if values else (CONSTANT,)
    return PLAIN, *(
        Variant(f"{parameter}={value:g}", (f"distillation.method.{parameter}={value!r}", *form), parameter, value)
        for value in values or SWEEPS[parameter]
    )
