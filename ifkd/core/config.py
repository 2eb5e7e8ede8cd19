"""Configuration files: TOML read into frozen schemas, with every mistake reported at once."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from ifkd.core.errors import ConfigError, did_you_mean

DIFFERENCES_SHOWN = 4
EARLIER_VERSION = "earlier_version"
"""Type of the validation error for values of an earlier version; its context has a `hint`."""


class Schema(BaseModel):
    """Base of everything that is a file: frozen, and no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Schema)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read a TOML file, lay `KEY=VALUE` overrides over it and validate both together.

    Args:
        path: The TOML file.
        schema: What it must hold.
        overrides: `a.b.c=VALUE` with VALUE written as TOML; a bare word is taken as a string.

    Raises:
        ConfigError: The file is absent or is not TOML, or any value is wrong; all mistakes are listed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}", hint="Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML ({error})") from error
    for override in overrides:
        _apply(values, override)
    return parse(values, schema, source=str(path))


def parse(values: dict[str, Any], schema: type[S], *, source: str) -> S:
    """Validate `values` against `schema`; `source` names them in the error.

    Raises:
        ConfigError: Any value is wrong; all mistakes are listed.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        if (first := error.errors()[0])["type"] == EARLIER_VERSION:
            raise ConfigError(f"{source} {first['msg']}", hint=first["ctx"]["hint"]) from error
        mistakes = _described(error.errors(), values, schema)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{source} has {count}:\n  " + "\n  ".join(mistakes)) from error


def override(value: S, overrides: Sequence[str], *, source: str) -> S:
    """Return `value` with `KEY=VALUE` overrides laid over it; `source` names it in the error.

    Raises:
        ConfigError: An override is wrong; all mistakes are listed.
    """
    values = value.model_dump(mode="json")
    for text in overrides:
        _apply(values, text)
    return parse(values, type(value), source=source)


def dump(schema: Schema) -> str:
    """Return a schema as TOML; keys without a value are left out."""
    return tomli_w.dumps(schema.model_dump(mode="json", exclude_none=True))


def differences(older: str, newer: str, *, besides: tuple[str, ...] = ()) -> str:
    """Return the first values in which two TOML texts differ, with the values of both; nothing when there are none.

    Keys that begin with one of `besides` do not count.
    """
    try:
        there, here = (dict(_flat(tomllib.loads(text))) for text in (older, newer))
    except tomllib.TOMLDecodeError as error:
        return f"its config.toml is not TOML ({error})"
    keys = [key for key in sorted(there.keys() | here.keys()) if not key.startswith(besides)]
    told = [
        f"{key.removeprefix('provenance.')} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]
    return "; ".join(told[:DIFFERENCES_SHOWN]) + ("; …" if len(told) > DIFFERENCES_SHOWN else "")


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"The override {override!r} is not KEY=VALUE", hint="For example: training.epochs=3")
    *parents, leaf = key.strip().split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"The override {override!r} reaches into {parent!r}, which is a value, not a table")
    try:
        table[leaf] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[leaf] = text


def _described(mistakes: Sequence[Any], values: dict[str, Any], schema: type[Schema]) -> list[str]:
    """Return a line for each mistaken place; where several kinds of value are allowed, it names all of them."""
    places: dict[str, list[Any]] = {}
    for mistake in mistakes:
        places.setdefault(_place(mistake, values), []).append(mistake)
    return [f"{where}: {_describe(found, schema)}" for where, found in places.items()]


def _place(mistake: Any, values: Any) -> str:
    """Return the key path as the file has it: pydantic's has the names of a union's branches between the keys."""
    path = []
    for position, part in enumerate(mistake["loc"]):
        absent = mistake["type"] == "missing" and position == len(mistake["loc"]) - 1
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        elif not absent:
            continue
        path.append(str(part))
    return ".".join(path) or "(whole file)"


def _describe(mistakes: Sequence[Any], schema: type[Schema]) -> str:
    first = mistakes[0]
    if first["type"] == "extra_forbidden":
        return f"there is no such key. {_suggestion(first['loc'], schema)}".rstrip()
    if first["type"] == "missing":
        return "is required and absent."
    if first["type"] == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        tag = first["ctx"]["tag"]
        told = (f"there is no {tag!r}.", did_you_mean(tag, tags), f"There are {', '.join(tags)}")
        return " ".join(part for part in told if part)
    message = ", or ".join(mistake["msg"].removeprefix("Value error, ") for mistake in mistakes)
    return message if isinstance(first["input"], dict) else f"{message}; got {first['input']!r}"


def _suggestion(location: tuple[int | str, ...], schema: type[Schema]) -> str:
    known = _all_keys(schema) - {str(location[-1])}  # the same key may be right elsewhere
    return did_you_mean(str(location[-1]), known)


def _all_keys(schema: type[BaseModel]) -> set[str]:
    """Return the keys of a schema and of every schema inside it."""
    keys: set[str] = set()
    waiting: list[Any] = [schema]
    seen: set[Any] = set()
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.add(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= set(kind.model_fields)
            waiting += [field.annotation for field in kind.model_fields.values()]
        else:
            waiting += list(getattr(kind, "__args__", ()))
    return keys
