"""Protobuf's text format, the format of Triton's config.pbtxt."""

import json
from collections.abc import Mapping
from typing import Any


class EnumValue(str):
    """A value of an enumeration, written without quotes."""

    __slots__ = ()


def as_text(message: Mapping[str, Any], *, indent: int = 0) -> str:
    """Return a message in text format, indented by a number of spaces.

    A value is a mapping, a string, an `EnumValue`, an integer, a boolean, or for a repeated field a list of these.
    """
    text, margin = "", " " * indent
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                text += f"{margin}{name} {{\n{as_text(one, indent=indent + 2)}{margin}}}\n"
            else:
                # JSON's string escapes are valid in the text format.
                scalar = one if isinstance(one, EnumValue) else json.dumps(one, ensure_ascii=False)
                text += f"{margin}{name}: {scalar}\n"
    return text


def map_entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a map field."""
    return [{"key": key, "value": value} for key, value in values.items()]
