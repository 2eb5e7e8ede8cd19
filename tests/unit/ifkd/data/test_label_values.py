"""Numbers, flags and ids as label tools write them."""

import math
from typing import Any

import pytest

from ifkd.data.label_values import flag, integer, label_id, number


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), ("4.5", 4.5), (" 7 ", 7.0), ("1_0", None), ("4,5", None), (True, None), (None, None), ([1], None)],
)
def test_number(value: Any, expected: float | None) -> None:
    assert number(value) == expected


def test_numbers_beyond_floats_are_infinite() -> None:
    assert number(10**400) == math.inf
    assert math.isnan(number("nan") or 0.0)
    assert integer("inf") is None
    assert integer("nan") is None
    assert integer(10**400) == 10**400


@pytest.mark.parametrize(("value", "expected"), [("7.0", 7), (7.5, None), (True, None), ("0x10", None), ("480", 480)])
def test_integer(value: Any, expected: int | None) -> None:
    assert integer(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((one, False) for one in (0, "0", "0.0", "False", "Unspecified", "no", "", None, False)),
        *((one, True) for one in (1, "1", "1.0", "True", "yes", 2, True)),
        *((one, None) for one in ("maybe", "nan", [], {})),
    ],
)
def test_flag(value: Any, expected: bool | None) -> None:
    assert flag(value) is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("7", 7), ("007", "007"), ("a", "a"), (7.0, 7), (True, None), ("²", "²")]
)
def test_label_id(value: Any, expected: int | str | None) -> None:
    assert label_id(value) == expected
