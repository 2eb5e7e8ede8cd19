"""`ifkd train`: each error of a recipe or of its data is one clear message; the result has the checkpoint's path."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deploy.cli.main import main
from ifkd.core.config import load
from ifkd.recipe import Recipe
from ifkd.training import pipelines
from ifkd.training.pipelines import _plan_run
from ifkd.training.run_folder import TrainingResult

ExpectError = Callable[..., str]


def edit_json(path: Path, **edits: Callable[[Any], Any]) -> None:
    """Replace values of a JSON file by functions of them."""
    content = json.loads(path.read_text())
    for key, edit in edits.items():
        content[key] = edit(content[key])
    path.write_text(json.dumps(content))


# --- recipes ------------------------------------------------------------------------------------------------------


def test_a_missing_recipe(expect_error: ExpectError) -> None:
    assert "absent.toml" in expect_error("train", "absent.toml")


def test_all_mistakes_of_a_recipe_are_listed(expect_error: ExpectError, recipe_path: Path) -> None:
    overrides = ("sed=1", "data.tile_px=33", "student.detector.backbone=resnet19")
    message = expect_error("train", str(recipe_path), *overrides, lines=4)
    assert "3 mistakes" in message
    assert "Did you mean 'seed'?" in message
    assert "multiple of 32" in message
    assert "'resnet19'" in message


@pytest.mark.parametrize(
    ("override", "expected"), [("student.trainig.epochs=3", "student.trainig"), ("seed", "'seed' is not KEY=VALUE")]
)
def test_a_mistyped_override(expect_error: ExpectError, recipe_path: Path, override: str, expected: str) -> None:
    assert expected in expect_error("train", str(recipe_path), override, lines=1 + override.count("="))


# --- data ---------------------------------------------------------------------------------------------------------


def test_a_missing_annotation_file(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "train.json").unlink()
    assert str(data_folder / "train.json") in expect_error("train", str(recipe_path))


def test_an_annotation_file_that_is_not_json(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "train.json").write_text('{"images": [')
    assert "train.json is not a JSON file" in expect_error("train", str(recipe_path))


def test_a_missing_image(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "images" / "train_003.png").unlink()
    assert "train_003.png" in expect_error("train", str(recipe_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image(expect_error: ExpectError, recipe_path: Path, data_folder: Path, workers: int) -> None:
    path = data_folder / "images" / "train_003.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "train_003.png" in expect_error("train", str(recipe_path), f"data.workers={workers}")


def test_an_annotation_outside_its_image(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    edit_json(data_folder / "train.json", annotations=lambda found: [{**found[0], "bbox": [60, 10, 30, 5]}, *found[1:]])
    message = expect_error("train", str(recipe_path), lines=2)
    assert "1 mistake" in message
    assert "annotation 1 " in message
    assert "[60.0, 10.0, 90.0, 15.0]" in message


def test_an_unknown_category_id(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    edit_json(data_folder / "val.json", annotations=lambda found: [*found[:-1], {**found[-1], "category_id": 4}])
    message = expect_error("train", str(recipe_path), lines=2)
    assert "category_id 4" in message
    assert "[3, 7, 9]" in message


def test_duplicate_image_ids(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    edit_json(data_folder / "train.json", images=lambda found: [*found[:-1], {**found[-1], "id": found[0]["id"]}])
    assert "2 images have the id 100" in expect_error("train", str(recipe_path), lines=4)


def test_fewer_images_than_a_batch(expect_error: ExpectError, recipe_path: Path) -> None:
    message = expect_error("train", str(recipe_path), "student.training.batch_size=9")
    assert "fewer images than one batch: got 8, expected at least 9" in message


def test_splits_with_different_classes(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    edit_json(data_folder / "val.json", categories=lambda found: [{**found[0], "name": "yacht"}, *found[1:]])
    assert "need the same classes" in expect_error("train", str(recipe_path))


def test_splits_with_classes_in_another_order(recipe_path: Path, data_folder: Path, tmp_path: Path) -> None:
    content = json.loads((data_folder / "val.json").read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    order = list(names)
    new = dict(zip(order, reversed(order), strict=True))
    edit_json(
        data_folder / "val.json",
        categories=lambda found: [{**one, "id": new[one["id"]]} for one in found],
        annotations=lambda found: [{**one, "category_id": new[one["category_id"]]} for one in found],
    )
    run = _plan_run(load(recipe_path, Recipe), tmp_path / "run", "", load(recipe_path, Recipe).student, {})
    found = [run.train_data.classes[label] for image in run.validation_data.images for label in image.labels]
    assert sorted(found) == sorted(names[one["category_id"]] for one in content["annotations"])


def test_a_validation_split_without_images(expect_error: ExpectError, recipe_path: Path, data_folder: Path) -> None:
    edit_json(data_folder / "val.json", images=lambda _: [], annotations=lambda _: [])
    assert "val.json lists no image" in expect_error("train", str(recipe_path))


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        ("images/val_002.png", (), "1 of 4 images of"),
        (None, ("student.training.compute.amp=fp16",), "needs a GPU"),
        (None, ("student.training.compute.sync_batch_norm=true",), "needs GPUs"),
        (None, ("data.validation=0.5", "data.images=absent"), "images of"),
    ],
)
def test_what_would_fail_after_the_first_step_is_found_before(
    expect_error: ExpectError,
    recipe_path: Path,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str | None,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(pipelines, "build_detector", lambda *_: pytest.fail("the detector is built"))
    monkeypatch.setattr(pipelines, "best_device", lambda: torch.device("cpu"))
    if path is not None:
        (data_folder / path).unlink()
    assert message in expect_error("train", str(recipe_path), *overrides)


def test_a_disk_that_is_too_full(
    expect_error: ExpectError, recipe_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ifkd.core.files.shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    assert "too full" in expect_error("train", str(recipe_path), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_warm_up_that_does_not_end_is_logged(
    recipe_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load(recipe_path, Recipe, ["student.training.schedule.warmup_iters=4"])
    _plan_run(recipe, tmp_path / "run", "", recipe.student, {})
    assert "The warm-up of 4 iterations does not end: the training has 4." in caplog.text


# --- results ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_writable(expect_error: ExpectError, recipe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Cannot write" in expect_error("train", str(recipe_path), "--out", str(tmp_path / "file" / "run"))


def test_a_run_prints_its_result_and_the_path_of_its_checkpoint(
    capsys: pytest.CaptureFixture[str], recipe_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["train", str(recipe_path), "student.training.epochs=1", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    result = TrainingResult.model_validate_json(capsys.readouterr().out)
    assert result.checkpoint == str(out / "best.safetensors")
    assert (out / "best.safetensors").is_file()
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "tiny student: validation mAP" in output
    assert output.splitlines()[-1] == str(out / "best.safetensors")


def test_a_result_of_another_schema_version_is_refused(
    expect_error: ExpectError, recipe_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "result.json").write_text('{"label": "tiny student", "seconds": 3.5}')
    message = expect_error("train", str(recipe_path), "--out", str(out))
    assert message == (
        f"error: {out / 'result.json'} has another schema version: got none, expected 2.\n"
        "hint: Train the run again with --no-resume.\n"
    )


def test_no_resume_deletes_a_run_and_no_other_files(
    expect_error: ExpectError, recipe_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"x")
    message = expect_error("train", str(recipe_path), "--out", str(folder), "--no-resume")
    assert "contains files but no run" in message
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]
