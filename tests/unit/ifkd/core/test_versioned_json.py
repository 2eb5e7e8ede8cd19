"""JSON files with a schema version."""

from pathlib import Path
from typing import Literal

import pytest

from ifkd.core.config import Schema
from ifkd.core.errors import BundleError, DataError
from ifkd.core.versioned_json import read_versioned


class Example(Schema):
    schema_version: Literal[2] = 2
    value: int


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_the_supported_version_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"schema_version": 2, "value": 3}')
    assert read_versioned(path, Example, hint="Write it again.") == Example(value=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"value": 3}', r"has another schema version: got none, expected 2\. Write it again\."),
        ('{"schema_version": 1, "old": 3}', r"has another schema version: got 1, expected 2"),
        ('{"schema_version": 2, "value": "x"}', r"is invalid at value \(.*\)\. Write it again\."),
        ('{"schema_version": 2', "is not a JSON file"),
        ("[2]", "has another schema version: got none"),
    ],
)
def test_other_files_are_refused_with_a_hint(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_versioned(write(tmp_path / "a.json", text), Example, hint="Write it again.")


def test_the_error_type_can_be_set(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no file"):
        read_versioned(tmp_path / "absent.json", Example, hint="", error_type=BundleError)
