"""Numbers, flags and ids of label files, which tools write as numbers or as text."""

import math
from typing import Any

SET = frozenset({"true", "t", "yes", "y"})
MAX_DIGITS = 300
"""Longest text that is read as an integer id."""
NOT_SET = frozenset({"", "false", "f", "no", "n", "none", "null", "unspecified"})


def number(value: Any) -> float | None:
    """Return a number, or text of one; None if it is neither. It may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return None if isinstance(value, str) and "_" in value else float(value)  # Python reads 1_0 as 10
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def integer(value: Any) -> int | None:
    """Return an integer, `7`, `7.0` or text of one; None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = number(value)
    return None if found is None or not found.is_integer() else int(found)


def flag(value: Any) -> bool | None:
    """Return whether a flag such as `iscrowd` or `difficult`, a number or a word, is set; None if it is unclear."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = number(value)
    if found is not None:
        return None if math.isnan(found) else found != 0
    word = value.strip().casefold() if isinstance(value, str) else None
    return True if word in SET else False if word in NOT_SET else None


def text_or(value: Any, default: str) -> str:
    """Return a value as text, or the default where it is null or NaN, as tables without a value have."""
    return default if value is None or value != value else str(value)  # noqa: PLR0124 - NaN differs from itself


def label_id(value: Any) -> int | str | None:
    """Return an id, an integer or text; text of an integer becomes one, so that `"7"` and `7` are one id."""
    if isinstance(value, str):
        is_number = value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS
        return int(value) if is_number and str(int(value)) == value else value
    return integer(value)
