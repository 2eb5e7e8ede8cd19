"""Protobuf's text format, the format of Triton's config.pbtxt."""

import json
from collections.abc import Mapping
from typing import Any


class EnumValue(str):
    """A value of an enumeration, written without quotes."""

    __slots__ = ()


def as_text(message: Mapping[str, Any], *, indent: int = 0) -> str:
    """Return a message in text format; a list is a repeated field.

    Args:
        message: Field -> value: a mapping, a string, an `EnumValue`, an integer, a boolean, or a list of these.
        indent: Spaces before each line.
    """
    lines: list[str] = []
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines += [f"{name} {{", as_text(one, indent=2).rstrip("\n"), "}"]
            else:
                lines.append(f"{name}: {_scalar(one)}")
    text = "\n".join(line for line in lines if line)
    return "".join(f"{' ' * indent}{line}\n" for line in text.split("\n")) if text else ""


def map_entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a map field."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _scalar(value: str | int) -> str:
    if isinstance(value, EnumValue):
        return str(value)
    # JSON's string escapes are valid in the text format.
    return json.dumps(value, ensure_ascii=False)
