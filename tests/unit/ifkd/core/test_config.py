"""Recipes: read with overrides, every mistake told at once."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ifkd.core.config import dump, load, parse
from ifkd.core.errors import ConfigError
from ifkd.recipe import IfkdOptions, NoMethodOptions, Recipe, select_levels
from ifkd.recipe.moved_keys import MOVED_KEYS, moved_keys

REPOSITORY = Path(__file__).resolve().parents[4]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(values))
    return path


def problem(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, Recipe, overrides)
    return str(caught.value)


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe = load(write(tmp_path / "r.toml", recipe_values), Recipe)
    assert recipe.student.detector.backbone == "mobilenet_v2"
    assert recipe.postprocess.score_threshold == 0.05
    method = recipe.distillation.method
    assert isinstance(method, IfkdOptions)
    assert (method.alpha, method.beta) == (0.06, 0.5)


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


def test_all_mistakes_are_told_at_once(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
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


def test_one_wrong_value_is_one_mistake(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    path = write(tmp_path / "r.toml", recipe_values)
    assert "has 1 mistake:" in problem(path, ("data.validation=1.5",))
    assert "has 1 mistake:" in problem(path, ("distillation.method.ede.input_px=-3",))
    assert "has 1 mistake:" in problem(path, ("distillation.method.name=magic",))


def test_a_mistake_in_a_methods_options_is_placed_as_it_is_written(
    tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    text = problem(write(tmp_path / "r.toml", recipe_values), ("distillation.method.hsm.clipp=3",))
    assert "distillation.method.hsm.clipp: there is no such key. Did you mean 'clip'?" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.trainig.epochs=3", "Did you mean 'training'?"),
        ("epochs", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("seed.deep=3", "treats 'seed' as a table, but it is a value"),
        ("seed=-1", "greater than or equal to 0"),
        ("distillation.method.fdr.grid=[15, 9]", "must have an even number of rows"),
        ("data.augmentation.scale_jitter=[1.2, 0.8]", "must be in increasing order"),
        ("distillation.method.fdr.r_range=[1.0, 0.5]", "must be in increasing order"),
        ("student.training.optimizer.learning_rate=fast", "got 'fast'"),
        ("student.training.schedule.name=[1]", "must be step, cosine, 1x or paper_100e; got [1]"),
        ("data.scale=0.3", "tile_px / scale must be an integer"),
        ("student.detector.family=faster_rcnn", "must be of the same family; teacher.detector.family is 'retinanet'"),
        (
            'distillation.method.fdr.levels=["p2", "p3"]',
            "distillation.method.fdr.levels contains p2, which a retinanet does not have; it has p3, p4, p5, p6, p7",
        ),
        ("distillation.method.head.frcnn_head=both", "frcnn_head is 'both', which requires faster_rcnn"),
        ('distillation.method.ede.levels=["p9"]', "distillation.method.ede.levels"),
    ],
)
def test_an_override_can_be_wrong(tmp_path: Path, recipe_values: dict[str, Any], override: str, expected: str) -> None:
    assert expected in problem(write(tmp_path / "r.toml", recipe_values), (override,))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "There is no file" in problem(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    assert "broken.toml is not TOML" in problem(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "binary.toml cannot be read" in problem(tmp_path / "binary.toml")
    assert "cannot be read" in problem(tmp_path)


def test_a_dumped_recipe_is_the_recipe(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe = parse(recipe_values, Recipe, source="values")
    (tmp_path / "r.toml").write_text(dump(recipe))
    assert load(tmp_path / "r.toml", Recipe) == recipe


def test_schemas_are_frozen(recipe_values: dict[str, Any]) -> None:
    recipe = parse(recipe_values, Recipe, source="values")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]


def test_levels_are_those_of_the_family(recipe_values: dict[str, Any]) -> None:
    for role in ("teacher", "student"):
        recipe_values[role]["detector"]["family"] = "faster_rcnn"
    recipe_values["distillation"]["method"]["fdr"]["levels"] = ["p3", "p2"]
    recipe = parse(recipe_values, Recipe, source="values")
    method = recipe.distillation.method
    assert isinstance(method, IfkdOptions)
    assert select_levels(method.fdr.levels, recipe.student.detector.levels) == ("p2", "p3")
    assert select_levels(method.ede.levels, recipe.student.detector.levels) == ("p2", "p3", "p4", "p5", "p6")


def test_plain_training_is_a_method(recipe_values: dict[str, Any]) -> None:
    recipe_values["distillation"]["method"] = {"name": "none"}
    assert isinstance(parse(recipe_values, Recipe, source="values").distillation.method, NoMethodOptions)


def recipes() -> list[Path]:
    return [path for path in sorted((REPOSITORY / "configs").rglob("*.toml")) if "[distillation" in path.read_text()]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_we_ship_holds(path: Path) -> None:
    recipe = load(path, Recipe)
    assert recipe.name
    assert recipe.data.tile_px % 32 == 0


@pytest.mark.parametrize("data", ["shiprsimagenet", "sar_aircraft"])
@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_the_papers_recipes_hold_what_their_names_say(data: str, family: str, backbone: str) -> None:
    path = REPOSITORY / "configs" / "paper" / f"{data}_{family}_{backbone}.toml"
    recipe = load(path, Recipe)
    assert recipe.name == path.stem
    teacher, student = recipe.teacher.detector, recipe.student.detector
    assert (teacher.family, teacher.backbone, student.family, student.backbone) == (
        family,
        "resnet50",
        family,
        backbone,
    )
    for training in (recipe.teacher.training, recipe.student.training, recipe.distillation.training):
        schedule = training.schedule
        assert (schedule.name, training.epochs, schedule.milestones) == ("step", 100, (80, 90))
        # C.2's linear rule, at eight images a step.
        rate = training.optimizer.learning_rate * training.batch_size / training.optimizer.base_batch_size
        assert rate == pytest.approx(0.005 if family == "retinanet" else 0.01)
    method = recipe.distillation.method
    assert isinstance(method, IfkdOptions)
    assert method == IfkdOptions()


def test_the_papers_recipes_differ_in_nothing_else() -> None:
    folder = REPOSITORY / "configs" / "paper"
    texts = {path.stem: path.read_text().splitlines() for path in folder.glob("*.toml")}
    assert len(texts) == 8
    for data in ("shiprsimagenet", "sar_aircraft"):
        for family in ("retinanet", "faster_rcnn"):
            one, other = (texts[f"{data}_{family}_{backbone}"] for backbone in ("resnet18", "mobilenet_v2"))
            different = [a for a, b in zip(one, other, strict=True) if a != b]
            assert {line.split(" ")[0] for line in different} <= {"#", "name", "backbone", "frozen_stages", "norm"}


def test_a_schedule_can_be_named(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    for role in ("teacher", "student"):
        del recipe_values[role]["training"]["epochs"]
    path = write(tmp_path / "r.toml", recipe_values)
    recipe = load(path, Recipe, ("teacher.training.schedule.name=paper_100e", "student.training.schedule.name=1x"))
    assert recipe.teacher.training.epochs == 100
    assert recipe.teacher.training.schedule.milestones == (80, 90)
    assert (recipe.student.training.epochs, recipe.student.training.schedule.milestones) == (12, (8, 11))
    assert recipe.student.training.schedule.name == "step"
    shorter = load(path, Recipe, ("student.training.schedule.name=1x", "student.training.epochs=3"))
    assert (shorter.student.training.epochs, shorter.student.training.schedule.milestones) == (3, (8, 11))
    told = problem(path, ("student.training.schedule.name=2x",))
    assert "student.training.schedule.name: must be step, cosine, 1x or paper_100e; got '2x'" in told


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            {"name": "fgdd"},
            "distillation.method: there is no 'fgdd'. Did you mean 'fgd'? Valid values are ifkd, none, fitnet",
        ),
        ({"name": "fgd", "alpha": 3.0}, "distillation.method.alpha: there is no such key."),
        ({"name": "frs", "temperature": 3.0}, "distillation.method.temperature: there is no such key."),
    ],
)
def test_another_methods_options_are_refused(
    tmp_path: Path, recipe_values: dict[str, Any], method: dict[str, Any], expected: str
) -> None:
    recipe_values["distillation"]["method"] = method
    said = problem(write(tmp_path / "r.toml", recipe_values))
    assert expected in said
    assert "Did you mean 'alpha'" not in said


def test_methods_that_compare_channel_by_channel_want_equal_widths(
    tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    recipe_values["distillation"]["method"] = {"name": "pkd"}
    recipe_values["teacher"]["detector"]["channels"] = 8
    recipe_values["student"]["detector"]["channels"] = 16
    assert "requires equal channels; teacher.detector.channels is 8" in problem(
        write(tmp_path / "r.toml", recipe_values)
    )
    recipe_values["student"]["detector"]["channels"] = 8
    load(write(tmp_path / "r.toml", recipe_values), Recipe)


def test_crosskd_is_for_retinanet(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    recipe_values["distillation"]["method"] = {"name": "crosskd"}
    for role in ("teacher", "student"):
        recipe_values[role]["detector"]["family"] = "faster_rcnn"
    assert "crosskd, which requires retinanet; the student is a faster_rcnn" in problem(
        write(tmp_path / "r.toml", recipe_values)
    )


def test_keys_of_an_earlier_version_are_refused_with_their_new_place(
    tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    recipe_values["selection"] = {"score_threshold": 0.1}
    recipe_values["student"]["training"]["optimizer"] = "adamw"
    recipe_values["distillation"]["training"]["steps"] = [8, 11]
    recipe_values["distillation"]["training"]["epochs"] = 0
    path = write(tmp_path / "r.toml", recipe_values)
    with pytest.raises(ConfigError) as caught:
        load(path, Recipe)
    assert caught.value.report() == (
        f"error: {path} has keys of an earlier version.\n"
        "hint: Move selection to postprocess, training.optimizer to training.optimizer.name, "
        "training.steps to training.schedule.milestones."
    )


def test_an_override_with_a_key_of_an_earlier_version_is_refused(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    text = problem(write(tmp_path / "r.toml", recipe_values), ("student.training.warmup_iters=3",))
    assert "Move training.warmup_iters to training.schedule.warmup_iters." in text


def test_every_moved_key_leads_to_a_key_of_today() -> None:
    values = json.loads(Recipe.model_validate(MINIMAL).model_dump_json())
    for new in MOVED_KEYS.values():
        table: Any = values["student"] if new.startswith("training.") else values
        for part in new.split("."):
            assert part in table, new
            table = table[part]
    assert moved_keys(values) == {}


MINIMAL: dict[str, Any] = {
    "name": "minimal",
    "data": {"train": "train.json", "validation": "val.json", "test": "test.json"},
    "teacher": {"detector": {"backbone": "resnet50"}, "training": {}},
    "student": {"detector": {"backbone": "resnet18"}, "training": {}},
    "distillation": {"training": {}, "method": {"name": "none"}},
}
