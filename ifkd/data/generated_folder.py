"""Generate a folder completely or not at all, and skip it when it was generated with the same settings before."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.core.config import differences
from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_folder, write_json


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of generated folder."""

    name: str
    """Name with its article, for messages: `a synthetic data set`."""
    record: str
    """File with the settings and a summary of the contents; it is written last."""


def generate_once(
    folder: Path, kind: FolderKind, settings: dict[str, Any], *, make: Callable[[Path], dict[str, Any]], force: bool
) -> dict[str, Any]:
    """Generate `folder`, unless it was generated with the same settings before; with `force` replace other ones.

    `settings`, as JSON, are all that its contents depend on; `version` is that of the generator. `make` fills an empty
    folder and returns a summary. The result has settings, summary, and `made`: whether the folder was generated now.

    Raises:
        OutputError: The folder has other contents or other settings, or is not writable.
    """
    settings = json.loads(json.dumps(settings))
    record = _read_record(folder, kind, settings)
    if record is not None:
        if record == {**record, **settings}:
            return {**record, "made": False}
        if not force:
            hint = "Choose another folder, or replace this one with --force."
            raise OutputError(_difference(folder, kind, record, settings), hint=hint)
    with atomic_folder(folder) as temporary:
        record = {**settings, **make(temporary)}
        write_json(temporary / kind.record, record)
    return {**record, "made": True}


def _read_record(folder: Path, kind: FolderKind, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of `folder`; None if the folder is absent or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / kind.record).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not set(settings) <= set(record):
        hint = "Choose a folder that is absent or empty."
        raise OutputError(f"{folder} has other files and is not {kind.name}", hint=hint)
    return record


def _difference(folder: Path, kind: FolderKind, record: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return what differs between the settings of a folder and the requested ones."""
    if record.get("version") != settings.get("version"):
        return f"{folder} is {kind.name} of another version of ifkd"
    found = differences({key: record.get(key) for key in settings}, settings)
    return f"{folder} is {kind.name} with other settings: {found}"
