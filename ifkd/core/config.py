"""Read configuration files (TOML) and versioned records (JSON) into frozen schemas."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from ifkd.core.errors import ConfigError, DataError, IfkdError, did_you_mean
from ifkd.core.files import read_json, read_text

EARLIER_VERSION = "earlier_version"
"""Type of the validation error for values of an earlier version; its context has a `hint`."""
DIFFERENCES_SHOWN = 4
VALUE_CHARACTERS = 60
"""Maximum length of a value in a list of differences."""


class Schema(BaseModel):
    """Base class of all configuration and record files: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Schema)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read a TOML file, apply overrides `a.b.c=VALUE` (TOML, or a bare word as a string) and validate the result.

    Raises:
        ConfigError: The file is missing, is not TOML or has invalid values; all mistakes are listed.
    """
    values = read_toml(path)
    for override in overrides:
        _apply(values, override)
    return parse(values, schema, source=str(path), overrides=overrides)


def read_toml(path: Path, error_type: type[IfkdError] = ConfigError) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        IfkdError: The file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(read_text(path, error_type=error_type))
    except tomllib.TOMLDecodeError as error:
        raise error_type(f"{path} is not a TOML file ({error})") from error


def parse(values: dict[str, Any], schema: type[S], *, source: str, overrides: Sequence[str] = ()) -> S:
    """Validate `values`; `source` names them in the error, which marks the mistakes in `overrides`.

    Raises:
        ConfigError: A value is invalid, all mistakes are listed; or no key is one of the schema.
    """
    if values and not values.keys() & schema.model_fields.keys():
        got, expected = ", ".join(values), ", ".join(schema.model_fields)
        raise ConfigError(f"{source} has none of the keys that are expected", got=got, expected=expected)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        if (first := error.errors()[0])["type"] == EARLIER_VERSION:
            raise ConfigError(f"{source} {first['msg']}", hint=first["ctx"]["hint"]) from error
        mistakes = _mistakes_by_key(
            error.errors(), values, schema, [one.partition("=")[0].strip() for one in overrides]
        )
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ConfigError(f"{source} has {count}:\n  " + "\n  ".join(mistakes)) from error


def override(value: S, overrides: Sequence[str], *, source: str) -> S:
    """Return a copy of `value` with overrides as in `load`; `source` names it in the error.

    Raises:
        ConfigError: An override is invalid; all mistakes are listed.
    """
    values = value.model_dump(mode="json")
    for text in overrides:
        _apply(values, text)
    return parse(values, type(value), source=source, overrides=overrides)


def dump(schema: Schema) -> str:
    """Return a schema as TOML, without keys that are None."""
    return tomli_w.dumps(schema.model_dump(mode="json", exclude_none=True))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: tuple[str, ...] = ()) -> str:
    """Return the first differences of two nested tables, such as "training.epochs was 2, is 3"; empty if equal.

    Dotted keys that start with one of `ignore` are not compared. A missing key equals None.
    """
    before, after = flatten(old), flatten(new)
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    keys = [key for key in keys if not key.startswith(ignore)]
    shown = [f"{key} was {_shown(before.get(key))}, is {_shown(after.get(key))}" for key in keys[:DIFFERENCES_SHOWN]]
    return "; ".join(shown) + ("; …" if len(keys) > DIFFERENCES_SHOWN else "")


def _shown(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[: VALUE_CHARACTERS - 1]}…"


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"The override {override!r} is not KEY=VALUE", hint="For example: data.tile_px=256")
    *parents, leaf = key.strip().split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"The override {override!r} treats {parent!r} as a table, but it is a value")
    try:
        table[leaf] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[leaf] = text


def _mistakes_by_key(
    errors: Sequence[Any], values: dict[str, Any], schema: type[Schema], overridden: Sequence[str]
) -> list[str]:
    """Return one line per invalid key; the errors of a union's branches are joined."""
    by_key: dict[str, list[Any]] = {}
    for error in errors:
        by_key.setdefault(_dotted_key(error, values), []).append(error)
    given = {key: any(f"{one}.".startswith(f"{key}.") for one in overridden) for key in by_key}
    return [f"{'override ' * given[key]}{key}: {_describe(found, schema)}" for key, found in by_key.items()]


def _dotted_key(error: Any, values: Any) -> str:
    """Return the dotted key in the file; pydantic adds the names of union branches to it."""
    path = []
    for position, part in enumerate(error["loc"]):
        missing = error["type"] == "missing" and position == len(error["loc"]) - 1
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        elif not missing:
            continue
        path.append(str(part))
    return ".".join(path) or "(file)"


def _describe(errors: Sequence[Any], schema: type[Schema]) -> str:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        # The same key may be valid in another table.
        return f"there is no such key. {did_you_mean(key, _all_keys(schema) - {key})}".rstrip()
    if first["type"] == "missing":
        return "is required and missing."
    if first["type"] == "union_tag_invalid":
        tag, tags = first["ctx"]["tag"], [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        parts = (f"there is no {tag!r}.", did_you_mean(tag, tags), f"Valid values are {', '.join(tags)}")
        return " ".join(part for part in parts if part)
    message = ", or ".join(error["msg"].removeprefix("Value error, ") for error in errors)
    return message if isinstance(first["input"], dict) else f"{message}; got {first['input']!r}"


def _all_keys(kind: Any) -> set[str]:
    """Return the keys of all schemas inside a type, itself included."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inside = [field.annotation for field in kind.model_fields.values()]
        return set(kind.model_fields).union(*map(_all_keys, inside))
    return set().union(*map(_all_keys, getattr(kind, "__args__", ())))


def read_versioned(path: Path, schema: type[S], *, hint: str, error_type: type[IfkdError] = DataError) -> S:
    """Read a JSON file into a schema whose field `schema_version` has the supported version as its default.

    Raises:
        IfkdError: The file cannot be read, has another schema version, or is invalid.
    """
    supported = schema.model_fields["schema_version"].default
    values = read_json(path, error_type=error_type, hint=hint)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != supported:
        raise error_type(f"{path} has another schema version", got=version or "none", expected=supported, hint=hint)
    try:
        return schema.model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise error_type(f"{path} is invalid at {key} ({first['msg']})", hint=hint) from error
