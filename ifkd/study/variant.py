"""What a study trains: the recipe with a few values changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from ifkd.core.errors import UsageError, did_you_mean

METHODS = ("fitnet", "at", "fkd", "fgd", "frs", "arsd", "insdist", "pkd", "cwd", "crosskd", "ifkd")
"""All methods, IFKD last."""
PARTS = ("ede", "fdr", "hsm")
ABLATION = ((), ("ede",), ("fdr",), ("hsm",), ("ede", "fdr"), ("ede", "hsm"), ("fdr", "hsm"), PARTS)
"""The rows of the paper's Table 4: which of IFKD's parts are on."""
SWEEPS: dict[str, tuple[float, ...]] = {
    "alpha": (0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    "beta": (0.1, 0.3, 0.5, 0.7, 0.9),
}
"""The grids of the paper's Figure 5, as far as they are known."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a study's table."""

    label: str
    """Also its folder's name."""
    overrides: tuple[str, ...]
    """KEY=VALUE laid over the recipe."""
    parameter: str | None = None
    """Of a sweep: what it varies."""
    value: float | None = None
    """Of a sweep: the parameter's value here."""


PLAIN = Variant("student", ('distillation.method={name="none"}',))
"""The student that has no teacher, which every study is measured against."""


def compared(methods: Sequence[str], *, own: str) -> list[Variant]:
    """Return the plain student and one variant a method; `own` is the recipe's method, which keeps its options.

    Raises:
        UsageError: There is no such method.
    """
    for name in methods:
        if name not in METHODS:
            raise UsageError(
                f"There is no method {name!r}",
                expected=f"some of {', '.join(METHODS)}",
                hint=did_you_mean(name, METHODS) or None,
            )
    return [
        PLAIN,
        *(Variant(name, () if name == own else (f'distillation.method={{name="{name}"}}',)) for name in methods),
    ]


def ablated(*, with_at: bool) -> list[Variant]:
    """Return the plain student and the rows of Table 4, with attention transfer beside all of them or without."""
    rows = [PLAIN]
    for on in ABLATION:
        if with_at and not on:
            rows.append(Variant("at", ('distillation.method={name="at"}',)))
            continue
        switches = tuple(f"distillation.method.{part}.enabled={str(part in on).lower()}" for part in PARTS)
        label = "+".join((("at",) if with_at else ()) + (on or ("none",)))
        rows.append(Variant(label, (*switches, f"distillation.method.with_at={str(with_at).lower()}")))
    return rows


def swept(parameter: str, values: Sequence[float] = ()) -> list[Variant]:
    """Return the plain student and IFKD with each value of alpha or beta.

    Raises:
        UsageError: There is no such parameter.
    """
    if parameter not in SWEEPS:
        raise UsageError(f"There is no grid for {parameter!r}", expected=" or ".join(SWEEPS))
    return [
        PLAIN,
        *(
            Variant(f"{parameter}={value:g}", (f"distillation.method.{parameter}={value!r}",), parameter, value)
            for value in values or SWEEPS[parameter]
        ),
    ]
