"""The folder of a run: settings and result."""

import json
from pathlib import Path
from typing import Any

import pytest

from ifkd.core.config import parse
from ifkd.core.errors import DataError, OutputError
from ifkd.models.checkpoint import CheckpointMeta
from ifkd.recipe import Recipe
from ifkd.training.run_folder import RunFolder


@pytest.fixture
def meta(recipe_values: dict[str, Any]) -> CheckpointMeta:
    recipe = parse(recipe_values, Recipe, source="values")
    provenance = {"role": "student", "teacher": "a.safetensors", "teacher_sha256": "1", "versions": {"torch": "2"}}
    return CheckpointMeta(
        detector=recipe.student.detector, classes=("ship",), category_ids=(1,), recipe=recipe, provenance=provenance
    )


def changed(meta: CheckpointMeta, **provenance: Any) -> CheckpointMeta:
    return meta.model_copy(update={"provenance": {**meta.provenance, **provenance}})


def test_a_run_claims_its_folder_again(tmp_path: Path, meta: CheckpointMeta) -> None:
    """The paths and versions of a resumed run may differ."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(meta, "tiny student")
    content = folder.config.read_text()
    assert content.startswith("# tiny student\n")
    folder.claim(changed(meta, teacher="b.safetensors", versions={"torch": "3"}), "tiny student")
    assert folder.config.read_text() == content


@pytest.mark.parametrize(("key", "value"), [("teacher_sha256", "2"), ("role", "teacher")])
def test_a_folder_of_another_run_is_refused(tmp_path: Path, meta: CheckpointMeta, key: str, value: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(meta, "tiny student")
    message = rf'contains a run with other settings: {key} was "{meta.provenance[key]}", is "{value}"\. .*--no-resume'
    with pytest.raises(OutputError, match=message):
        folder.claim(changed(meta, **{key: value}), "tiny student")


def test_a_damaged_config_is_refused(tmp_path: Path, meta: CheckpointMeta) -> None:
    (tmp_path / "config.toml").write_text("torn =")
    with pytest.raises(OutputError, match=r"config\.toml is not a TOML file"):
        RunFolder(tmp_path).claim(meta, "tiny student")


def test_a_result_of_the_first_schema_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"label": "tiny student", "seconds": 12.5}))
    message = r"result\.json has another schema version: got none, expected 2\. Train the run again with --no-resume\."
    with pytest.raises(DataError, match=message) as caught:
        RunFolder(tmp_path).read_result()
    assert "\n" not in str(caught.value)
