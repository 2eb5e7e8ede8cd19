"""Recipes: rules between options, named schedules, and the recipes in configs/."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ifkd.core.config import load, parse
from ifkd.core.errors import ConfigError
from ifkd.recipe import IfkdOptions, NoDistillationOptions, Recipe, select_levels
from ifkd.recipe.recipe import locate_data

REPOSITORY = Path(__file__).resolve().parents[4]


def problem(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(values, Recipe, source="values")
    return str(caught.value)


def test_levels_are_selected_from_the_family(recipe_values: dict[str, Any]) -> None:
    for role in ("teacher", "student"):
        recipe_values[role]["detector"]["family"] = "faster_rcnn"
    recipe_values["distillation"]["method"]["fdr"]["levels"] = ["p3", "p2"]
    recipe = parse(recipe_values, Recipe, source="values")
    method = recipe.distillation.method
    assert isinstance(method, IfkdOptions)
    assert select_levels(method.fdr.levels, recipe.student.detector.levels) == ("p2", "p3")
    assert select_levels(method.ede.levels, recipe.student.detector.levels) == ("p2", "p3", "p4", "p5", "p6")


def test_plain_training_is_the_method_none(recipe_values: dict[str, Any]) -> None:
    recipe_values["distillation"]["method"] = {"name": "none"}
    assert isinstance(parse(recipe_values, Recipe, source="values").distillation.method, NoDistillationOptions)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("export.overlap_px=64", "export.overlap_px must be below data.tile_px; they are 64 and 64"),
        ("export.tile_sides_px=[96, 128]", "must include data.tile_px; they are [96, 128] and 64"),
        ("data.scale=inf", "finite"),
        ("data.scale=1e-3", "must be at most 16384, got tile_px 64 and scale 0.001"),
        ("data.tile_px=32768", "must be at most 16384"),
        ("data.scale=1000", "must be an integer"),
        ("data.workers=257", "less than or equal to 256"),
        ("data.validation=1.0", "data.validation"),
        ("data.validation=0.0", "data.validation"),
        ("student.training.accumulation_steps=3", "batch_size must be a multiple of accumulation_steps, got 4 and 3"),
        ("student.training.optimizer.learning_rate=inf", "finite"),
        ("student.training.optimizer.momentum=1.0", "less than 1"),
        ("student.training.schedule.warmup_factor=2.0", "less than or equal to 1"),
        ("student.detector.proposals=3841", "less than or equal to 3840"),
        ("student.detector.sampled_rois=3", "greater than or equal to 4"),
        ("export.candidates_per_level=3841", "less than or equal to 3840"),
        ("export.scene_score_threshold=1.0", "less than 1"),
        ("export.gsd_m=inf", "finite"),
        ("postprocess.score_threshold=1.0", "less than 1"),
        ("postprocess.score_threshold=-0.1", "greater than or equal to 0"),
        ("postprocess.iou_threshold=1.5", "less than or equal to 1"),
        ("postprocess.max_detections=0", "greater than 0"),
        ("distillation.method.alpha=nan", "alpha"),
        ("distillation.method.hsm.clip=inf", "finite"),
        ("seed=9223372036854775808", "seed"),
        ('name="a/b"', "without slashes"),
        ('name=""', "name of a folder"),
        ('name="..."', "without a dot at the start"),
        (f'name="{"海" * 34}"', "at most 100 bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, recipe_values: dict[str, Any], override: str, message: str
) -> None:
    (tmp_path / "r.toml").write_text(tomli_w.dumps(recipe_values))
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(tmp_path / "r.toml", Recipe, [override])


def test_the_data_of_a_trained_detector_can_move(recipe_values: dict[str, Any]) -> None:
    recipe = parse(recipe_values, Recipe, source="values")
    moved = locate_data(recipe, ["data.root=/elsewhere", "data.test=other.json"])
    assert (moved.data.root, moved.data.test) == (Path("/elsewhere"), Path("other.json"))
    assert moved.model_copy(update={"data": recipe.data}) == recipe
    for key in ("data.scale", "data.tile_px", "seed", "data.imagery.bands"):
        with pytest.raises(ConfigError, match=f"cannot change: got {key}, expected one of data.root"):
            locate_data(recipe, [f"{key}=2"])


def recipes() -> list[Path]:
    return [path for path in sorted((REPOSITORY / "configs").rglob("*.toml")) if "[distillation" in path.read_text()]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_in_configs_is_valid(path: Path) -> None:
    recipe = load(path, Recipe)
    assert recipe.name
    assert recipe.data.tile_px % 32 == 0


@pytest.mark.parametrize("data", ["shiprsimagenet", "sar_aircraft"])
@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_recipes_of_the_paper_match_their_names(data: str, family: str, backbone: str) -> None:
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
    paper = {"fdr": {"apply_to": "teacher", "filter": "grid"}, "hsm": {"reference": "raw"}, "feature_scale": "none"}
    assert method == IfkdOptions.model_validate(paper)
    assert recipe.distillation.balance.form == "constant"


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/**/*.toml")), ids=lambda path: path.stem)
def test_both_students_of_a_recipe_are_trained_alike(path: Path) -> None:
    text = path.read_text("utf-8")
    if "[distillation" not in text:
        pytest.skip("it is not a recipe")
    recipe = load(path, Recipe)
    assert recipe.distillation.training == recipe.student.training
    assert recipe.student.training.optimizer.grad_clip == 10


def test_recipes_of_the_paper_differ_only_in_the_student() -> None:
    folder = REPOSITORY / "configs" / "paper"
    texts = {path.stem: path.read_text().splitlines() for path in folder.glob("*.toml")}
    assert len(texts) == 8
    for data in ("shiprsimagenet", "sar_aircraft"):
        for family in ("retinanet", "faster_rcnn"):
            one, other = (texts[f"{data}_{family}_{backbone}"] for backbone in ("resnet18", "mobilenet_v2"))
            different = [a for a, b in zip(one, other, strict=True) if a != b]
            assert {line.split(" ")[0] for line in different} <= {"#", "name", "backbone", "frozen_stages", "norm"}


def test_a_named_schedule_sets_epochs_and_milestones(tmp_path: Path, recipe_values: dict[str, Any]) -> None:
    for role in ("teacher", "student"):
        del recipe_values[role]["training"]["epochs"]
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps(recipe_values))
    recipe = load(path, Recipe, ("teacher.training.schedule.name=paper_100e", "student.training.schedule.name=1x"))
    assert recipe.teacher.training.epochs == 100
    assert recipe.teacher.training.schedule.milestones == (80, 90)
    assert (recipe.student.training.epochs, recipe.student.training.schedule.milestones) == (12, (8, 11))
    assert recipe.student.training.schedule.name == "step"
    shorter = load(path, Recipe, ("student.training.schedule.name=1x", "student.training.epochs=3"))
    assert (shorter.student.training.epochs, shorter.student.training.schedule.milestones) == (3, (8, 11))
    recipe_values["student"]["training"]["schedule"]["name"] = "2x"
    expected = "student.training.schedule.name: must be step, cosine, 1x or paper_100e; got '2x'"
    assert expected in problem(recipe_values)


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
def test_options_of_another_method_are_refused(
    recipe_values: dict[str, Any], method: dict[str, Any], expected: str
) -> None:
    recipe_values["distillation"]["method"] = method
    text = problem(recipe_values)
    assert expected in text
    assert "Did you mean 'alpha'" not in text


def test_methods_that_compare_channels_require_equal_channels(recipe_values: dict[str, Any]) -> None:
    recipe_values["distillation"]["method"] = {"name": "pkd"}
    recipe_values["teacher"]["detector"]["channels"] = 8
    recipe_values["student"]["detector"]["channels"] = 16
    assert "requires equal channels; teacher.detector.channels is 8" in problem(recipe_values)
    recipe_values["student"]["detector"]["channels"] = 8
    parse(recipe_values, Recipe, source="values")


@pytest.mark.parametrize("name", ["pkd", "cwd", "fgd"])
def test_a_method_without_levels_is_refused(recipe_values: dict[str, Any], name: str) -> None:
    recipe_values["distillation"]["method"] = {"name": name, "levels": []}
    assert "distillation.method.levels is empty; it must have at least one of p3, p4" in problem(recipe_values)


def test_crosskd_requires_retinanet(recipe_values: dict[str, Any]) -> None:
    recipe_values["distillation"]["method"] = {"name": "crosskd"}
    for role in ("teacher", "student"):
        recipe_values[role]["detector"]["family"] = "faster_rcnn"
    assert "crosskd, which requires retinanet; the student is a faster_rcnn" in problem(recipe_values)


def test_oriented_boxes_have_a_lower_iou_threshold_by_default(recipe_values: dict[str, Any]) -> None:
    recipe_values.pop("postprocess", None)
    assert parse(recipe_values, Recipe, source="values").postprocess.iou_threshold == 0.5
    for role in ("teacher", "student"):
        recipe_values[role]["detector"] |= {"oriented": True, "family": "retinanet"}
    assert parse(recipe_values, Recipe, source="values").postprocess.iou_threshold == 0.1
    recipe_values["postprocess"] = {"score_threshold": 0.1}
    recipe = parse(recipe_values, Recipe, source="values")
    assert (recipe.postprocess.score_threshold, recipe.postprocess.iou_threshold) == (0.1, 0.1)
    recipe_values["postprocess"] = {"iou_threshold": 0.5}
    assert parse(recipe_values, Recipe, source="values").postprocess.iou_threshold == 0.5


def test_oriented_boxes_need_a_retinanet_and_both_detectors(recipe_values: dict[str, Any]) -> None:
    recipe_values["student"]["detector"] |= {"oriented": True}
    assert "student.detector.oriented True" in problem(recipe_values)
    recipe_values["teacher"]["detector"] |= {"oriented": True, "family": "faster_rcnn"}
    assert "oriented = true requires the family retinanet; the family is faster_rcnn" in problem(recipe_values)
