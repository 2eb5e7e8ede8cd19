"""Protocol Buffers' text format, written: what Triton's config.pbtxt is in."""

import json
from collections.abc import Mapping
from typing import Any


class Word(str):
    """A value of an enumeration, which stands without quotes."""

    __slots__ = ()


def as_text(message: Mapping[str, Any], *, indent: int = 0) -> str:
    """Return a message as text: mappings are messages, a list repeats its field, and so does a `Word` in one.

    Args:
        message: Field -> its value: a mapping, text, a `Word`, a whole number, a truth value, or a list of these.
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


def entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a map as the entries it is written as."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _scalar(value: str | int) -> str:
    if isinstance(value, Word):
        return str(value)
    # JSON's escapes of text are among those that the text format knows.
    return json.dumps(value, ensure_ascii=False)
