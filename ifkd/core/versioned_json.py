"""Read JSON files that state the version of their schema."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ifkd.core.config import Schema
from ifkd.core.errors import DataError, IfkdError
from ifkd.core.files import read_json

S = TypeVar("S", bound=Schema)


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
