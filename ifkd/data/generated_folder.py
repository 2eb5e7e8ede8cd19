"""Folders of data that are made whole or not at all, and not made twice."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.core.errors import OutputError
from ifkd.core.files import make_folder, write_json


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder."""

    name: str
    """For messages, with its article: `a synthetic data set`."""
    record: str
    """The file that says how the folder was made; its presence means that all is there."""


def made_once(
    folder: Path,
    kind: FolderKind,
    wanted: dict[str, Any],
    *,
    make: Callable[[Path], dict[str, Any]],
    force: bool = False,
) -> dict[str, Any]:
    """Have `folder` filled, unless it was filled the same way before.

    Args:
        folder: It must be absent, empty or of this kind.
        kind: What it is.
        wanted: All that its content depends on, as JSON.
        make: Fills an empty folder, and returns what the record is to say of the content.
        force: Replace a folder of the same kind that was made otherwise.

    Returns:
        The record, `wanted` and what `make` returned, and `made`: whether it was made now.

    Raises:
        OutputError: The folder holds something else, was made otherwise, or cannot be written.
    """
    wanted = json.loads(json.dumps(wanted))
    present = _present(folder, kind, wanted)
    if present is not None:
        differences = _differences(present, wanted)
        if not differences:
            return {**present, "made": False}
        if not force:
            raise OutputError(
                f"{folder} holds {kind.name} that was made otherwise:\n  " + "\n  ".join(differences),
                hint="Choose another folder, or replace this one with --force.",
            )
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        record = {**wanted, **make(temporary)}
        write_json(temporary / kind.record, record)
        temporary.chmod(0o755)
        _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**record, "made": True}


def _present(folder: Path, kind: FolderKind, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of `folder`, or nothing if the folder is free.

    Raises:
        OutputError: It is neither free nor of this kind.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / kind.record).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not set(wanted) <= set(record):
        raise OutputError(
            f"{folder} holds something that is not {kind.name}",
            hint="Choose a folder that is absent or empty.",
        )
    return record


def _differences(present: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return lines on what of `wanted` the present record has otherwise."""
    old, new = _flat({key: present.get(key) for key in wanted}), _flat(wanted)
    return [
        f"{key}: there {old.get(key)!r}, wanted {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _take_place(temporary: Path, folder: Path) -> None:
    """Move a finished folder to its place; an older one there disappears."""
    try:
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"Cannot write {folder} ({error.strerror or error})", hint="Choose another place.") from error
