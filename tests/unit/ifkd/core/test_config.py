"""Configuration files: overrides, mistakes and differences; JSON files with a schema version."""

from pathlib import Path
from typing import Any, Literal

import pytest
import tomli_w

from ifkd.core.config import Schema, differences, dump, flatten, load, parse, read_versioned
from ifkd.core.errors import BundleError, ConfigError, DataError
from ifkd.recipe import IfkdOptions, Recipe


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(values))
    return path


def problem(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, Recipe, overrides)
    return str(caught.value)


def test_a_recipe_is_loaded_with_its_defaults(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe = load(write(tmp_path / "r.toml", recipe_values), Recipe)
    assert recipe.student.detector.backbone == "mobilenet_v2"
    assert recipe.postprocess.score_threshold == 0.05
    method = recipe.distillation.method
    assert isinstance(method, IfkdOptions)
    assert (method.alpha, method.beta) == (3.0, 0.5)


def test_overrides_are_toml_and_bare_words_are_strings(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    path = write(tmp_path / "r.toml", recipe_values)
    overrides = (
        "student.training.epochs=7",
        "data.augmentation.scale_jitter=[0.8, 1.25]",
        "data.augmentation.flip=false",
        "student.detector.backbone=resnet18",
        "distillation.method.ede.weights=/a/b.pt",
        " seed = 9",
    )
    recipe = load(path, Recipe, overrides)
    assert recipe.student.training.epochs == 7
    assert recipe.data.augmentation.scale_jitter == (0.8, 1.25)
    assert recipe.data.augmentation.flip is False
    assert recipe.student.detector.backbone == "resnet18"
    assert recipe.seed == 9
    assert recipe.teacher.training.epochs == 2


def test_all_mistakes_are_reported_at_once(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe_values["student"]["detector"]["chanels"] = 32
    recipe_values["data"]["tile_px"] = 100
    recipe_values["teacher"]["training"]["epochs"] = 0
    del recipe_values["name"]
    text = problem(write(tmp_path / "r.toml", recipe_values))
    assert "r.toml has 4 mistakes" in text
    assert "student.detector.chanels: there is no such key. Did you mean 'channels'?" in text
    assert "tile_px must be a multiple of 32, got 100" in text
    assert "teacher.training.epochs: Input should be greater than 0; got 0" in text
    assert "name: is required and missing." in text


def test_one_invalid_value_is_one_mistake(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    path = write(tmp_path / "r.toml", recipe_values)
    assert "has 1 mistake:" in problem(path, ("data.validation=1.5",))
    assert "has 1 mistake:" in problem(path, ("distillation.method.ede.input_px=-3",))
    assert "has 1 mistake:" in problem(path, ("distillation.method.name=magic",))


def test_a_mistake_in_a_union_has_the_key_of_the_file(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    text = problem(write(tmp_path / "r.toml", recipe_values), ("distillation.method.hsm.clipp=3",))
    assert "distillation.method.hsm.clipp: there is no such key. Did you mean 'clip'?" in text


def test_a_mistake_in_an_override_is_told_from_those_in_the_file(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe_values["teacher"]["training"]["epochs"] = 0
    overrides = ("student.trainig.epochs=3", "data.scale=-1")
    lines = problem(write(tmp_path / "r.toml", recipe_values), overrides).splitlines()
    keys = {line.strip().rpartition(": there")[0] or line.strip().partition(": ")[0] for line in lines[1:]}
    assert keys == {"teacher.training.epochs", "override student.trainig", "override data.scale"}


def test_a_file_of_another_kind_is_refused_with_the_keys_expected(tmp_path: Path) -> None:
    text = problem(write(tmp_path / "t.toml", {"fp16": {"min_recall": 0.9}}))
    assert "t.toml has none of the keys that are expected: got fp16, expected name, seed, data" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.trainig.epochs=3", "Did you mean 'training'?"),
        ("epochs", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("seed.deep=3", "treats 'seed' as a table, but it is a value"),
        ("seed=-1", "greater than or equal to 0"),
        ("distillation.method.fdr.grid=[15, 9]", "must have an even number of rows"),
        ("distillation.method.ede.input_px=100", "multiple of 16"),
        ("data.augmentation.scale_jitter=[1.2, 0.8]", "must be in increasing order"),
        ("distillation.method.fdr.r_range=[1.0, 0.5]", "must be in increasing order"),
        ("student.training.optimizer.learning_rate=fast", "got 'fast'"),
        ("student.training.schedule.name=[1]", "must be step, cosine, 1x or paper_100e; got [1]"),
        ("data.scale=0.3", "tile_px / scale must be an integer"),
        ("export.scene_objects_per_km2=4", "scene_objects_per_km2 needs gsd_m"),
        ("student.detector.anchor_scale=2", "must have the same anchors; teacher.detector.anchor_scale is None"),
        ("student.detector.family=faster_rcnn", "must be of the same family; teacher.detector.family is 'retinanet'"),
        (
            'distillation.method.fdr.levels=["p2", "p3"]',
            "distillation.method.fdr.levels contains p2, which a retinanet does not have; it has p3, p4, p5, p6, p7",
        ),
        ("distillation.method.head.frcnn_head=both", "frcnn_head is 'both', which requires faster_rcnn"),
        ('distillation.method.ede.levels=["p9"]', "distillation.method.ede.levels"),
    ],
)
def test_an_invalid_override_is_refused(
    tmp_path: Path, recipe_values: dict[str, Any], override: str, expected: str
) -> None:
    assert expected in problem(write(tmp_path / "r.toml", recipe_values), (override,))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "There is no file" in problem(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    assert "broken.toml is not a TOML file" in problem(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "binary.toml cannot be read" in problem(tmp_path / "binary.toml")
    assert "cannot be read: got a folder, expected file." in problem(tmp_path)


def test_a_dumped_recipe_is_loaded_unchanged(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe = parse(recipe_values, Recipe, source="values")
    (tmp_path / "r.toml").write_text(dump(recipe))
    assert load(tmp_path / "r.toml", Recipe) == recipe


def test_schemas_are_frozen(recipe_values: dict[str, Any]) -> None:
    recipe = parse(recipe_values, Recipe, source="values")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_nested_tables_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_differences_are_listed_by_dotted_key() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": "x", "f": 1}, {"a": {"b": 1, "c": 3}, "e": None, "f": 2}
    assert differences(old, new) == 'a.c was 2, is 3; d was "x", is absent; f was 1, is 2'
    assert differences(old, new, ignore=("a.", "d")) == "f was 1, is 2"
    assert differences(old, dict(old)) == ""


def test_only_the_first_differences_are_listed_and_long_values_are_cut() -> None:
    old, new = (dict.fromkeys("abcdef", value * 100) for value in "xy")
    parts = differences(old, new).split("; ")
    assert len(parts) == 5
    assert parts[-1] == "…"
    assert len(parts[0]) < 140


class Versioned(Schema):
    schema_version: Literal[2] = 2
    value: int


def _write_json(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_the_supported_version_is_read(tmp_path: Path) -> None:
    path = _write_json(tmp_path / "a.json", '{"schema_version": 2, "value": 3}')
    assert read_versioned(path, Versioned, hint="Write it again.") == Versioned(value=3)


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
        read_versioned(_write_json(tmp_path / "a.json", text), Versioned, hint="Write it again.")


def test_the_error_type_can_be_set(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no file"):
        read_versioned(tmp_path / "absent.json", Versioned, hint="", error_type=BundleError)
