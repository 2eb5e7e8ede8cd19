"""The command line: help at once, and every mistake a user can make ends in one clear line and exit code 2."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import save_file

from deploy.cli.main import VERBS, main
from ifkd import __version__
from ifkd.core.config import parse
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.recipe import DetectorOptions, Recipe

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Run a verb in an empty folder; it must exit with 2, say so in one line, and leave nothing half-written."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*words: str, lines: int = 1) -> str:
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        told = captured.err[captured.err.index("ifkd: ") :]
        assert told.count("\n") == lines, told
        assert "Traceback" not in captured.err
        left = {path.name for path in place.rglob("*") if path.is_file()}
        assert left <= {"config.toml"}, left
        return told

    return run


@pytest.fixture
def recipe_path(tmp_path: Path, recipe_values: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(recipe_values))
    return path


def change(path: Path, **changes: Callable[[Any], Any]) -> None:
    """Change parts of a COCO json."""
    content = json.loads(path.read_text())
    for key, changed in changes.items():
        content[key] = changed(content[key])
    path.write_text(json.dumps(content))


def checkpoint(path: Path, recipe_values: dict[str, Any], **different: Any) -> Path:
    """Write a freshly initialized teacher's checkpoint."""
    recipe = parse(recipe_values, Recipe, source="values")
    classes = different.get("classes", ("barge", "ferry", "tug"))
    detector = build_detector(different.get("built", recipe.teacher.detector), len(classes))
    meta = CheckpointMeta(
        detector=recipe.teacher.detector,
        classes=classes,
        category_ids=tuple(range(len(classes))),
        recipe=recipe,
        provenance={},
    )
    save_checkpoint(path, detector, meta)
    return path


# --- help and verbs -----------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom deploy.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tqdm', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


def test_no_word_is_a_call_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "verbs:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ifkd {__version__}\n"


def test_an_unknown_verb_is_met_with_the_nearest_one(fails: Fails) -> None:
    assert "There is no verb 'trian'" in fails("trian", "a.toml")
    assert "Did you mean 'train'?" in fails("trian", "a.toml")
    assert "`ifkd --help` lists the verbs." in fails("xyzzy")


def test_an_unknown_flag_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "a.toml", "--roll", "x"])
    assert end.value.code == 2
    assert "--roll" in capsys.readouterr().err


def test_verbose_shows_where_it_happened(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert main(["train", str(tmp_path / "absent.toml")]) == 2
    assert not caplog.records
    assert main(["train", str(tmp_path / "absent.toml"), "-v"]) == 2
    (record,) = caplog.records
    assert record.exc_info is not None


# --- recipes ------------------------------------------------------------------------------------------------------


def test_a_missing_recipe(fails: Fails) -> None:
    assert "There is no file absent.toml" in fails("train", "absent.toml")


def test_three_mistakes_in_a_recipe_are_told_together(fails: Fails, recipe_path: Path) -> None:
    told = fails("train", str(recipe_path), "sed=1", "data.tile_px=33", "student.detector.backbone=resnet19", lines=4)
    assert "3 mistakes" in told
    assert "sed: there is no such key. Did you mean 'seed'?" in told
    assert "multiple of 32" in told
    assert "'resnet19'" in told


@pytest.mark.parametrize(
    ("override", "expected"),
    [("student.trainig.epochs=3", "student.trainig: there is no such key"), ("seed", "'seed' is not KEY=VALUE")],
)
def test_a_mistyped_override(fails: Fails, recipe_path: Path, override: str, expected: str) -> None:
    told = fails("train", str(recipe_path), override, lines=1 + override.count("="))
    assert expected in told


# --- data ---------------------------------------------------------------------------------------------------------


def test_a_missing_annotation_file(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "train.json").unlink()
    assert "There is no annotation file" in fails("train", str(recipe_path))


def test_a_file_that_is_no_json(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "train.json").write_text('{"images": [')
    assert "train.json is not a JSON file" in fails("train", str(recipe_path))


def test_a_missing_image(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    (data_folder / "images" / "train_003.png").unlink()
    assert "train_003.png" in fails("train", str(recipe_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image(fails: Fails, recipe_path: Path, data_folder: Path, workers: int) -> None:
    path = data_folder / "images" / "train_003.png"
    path.write_bytes(path.read_bytes()[:200])
    told = fails("train", str(recipe_path), f"data.workers={workers}")
    assert "train_003.png is not an image that can be read" in told


def test_an_annotation_outside_its_image(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    change(data_folder / "train.json", annotations=lambda found: [{**found[0], "bbox": [60, 10, 30, 5]}, *found[1:]])
    told = fails("train", str(recipe_path), lines=2)
    assert "1 mistake:" in told
    assert "annotation 1 of train_000.png has the box [60.0, 10.0, 90.0, 15.0], which is outside its image" in told


def test_a_class_id_that_does_not_exist(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    change(data_folder / "val.json", annotations=lambda found: [*found[:-1], {**found[-1], "category_id": 4}])
    assert "category_id 4; the file's are [3, 7, 9]" in fails("train", str(recipe_path), lines=2)


def test_image_ids_that_are_not_unique(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    change(data_folder / "train.json", images=lambda found: [*found[:-1], {**found[-1], "id": found[0]["id"]}])
    assert "2 images have the id 100" in fails("train", str(recipe_path), lines=4)


def test_fewer_images_than_a_batch(fails: Fails, recipe_path: Path) -> None:
    told = fails("train", str(recipe_path), "student.training.batch_size=9")
    assert "fewer images than one batch: got 8, expected at least 9" in told


def test_splits_of_different_classes(fails: Fails, recipe_path: Path, data_folder: Path) -> None:
    change(data_folder / "val.json", categories=lambda found: [{**found[0], "name": "yacht"}, *found[1:]])
    assert "different classes" in fails("train", str(recipe_path))


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_a_missing_teacher(fails: Fails, recipe_path: Path) -> None:
    assert "There is no checkpoint runs/tiny/teacher/best.safetensors" in fails("distill", str(recipe_path))


def test_a_checkpoint_of_another_detector(
    fails: Fails, recipe_path: Path, tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    other = DetectorOptions(backbone="mobilenet_v2", channels=16)
    path = checkpoint(tmp_path / "other.safetensors", recipe_values, built=other)
    told = fails("distill", str(recipe_path), "--teacher", str(path))
    assert "do not match the resnet18 retinanet in its header" in told


def test_a_teacher_of_other_classes(
    fails: Fails, recipe_path: Path, tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    path = checkpoint(tmp_path / "other.safetensors", recipe_values, classes=("cat", "dog"))
    told = fails("distill", str(recipe_path), "--teacher", str(path))
    assert "finds other classes" in told
    assert "['cat', 'dog']" in told


def test_weights_that_are_no_checkpoint(fails: Fails, recipe_path: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert "no IFKD header" in fails("distill", str(recipe_path), "--teacher", str(tmp_path / "a.safetensors"))
    (tmp_path / "b.safetensors").write_bytes(b"not weights at all")
    assert "not a complete safetensors file" in fails(
        "distill", str(recipe_path), "--teacher", str(tmp_path / "b.safetensors")
    )


def test_a_teacher_that_knows_nothing(
    fails: Fails, recipe_path: Path, tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    path = checkpoint(tmp_path / "weak.safetensors", recipe_values)
    told = fails("distill", str(recipe_path), "--teacher", str(path), "distillation.min_teacher_map=0.3")
    assert "The teacher is too weak to teach: got validation mAP 0.0" in told
    assert "at least 0.3 (distillation.min_teacher_map)" in told


def test_mobilesam_that_is_not_installed(
    fails: Fails, recipe_path: Path, tmp_path: Path, recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))
    path = checkpoint(tmp_path / "teacher.safetensors", recipe_values)
    told = fails("distill", str(recipe_path), "--teacher", str(path), "distillation.method.ede.weights=mobile_sam")
    assert f"MobileSAM's weights are missing at {tmp_path}/cache/mobile_sam.pt" in told
    assert "Download https://" in told


def test_a_place_that_cannot_be_written(fails: Fails, recipe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Cannot write" in fails("train", str(recipe_path), "--out", str(tmp_path / "file" / "run"))


# --- what is right ------------------------------------------------------------------------------------------------


def test_a_run_prints_its_result_and_place(
    capsys: pytest.CaptureFixture[str], recipe_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    short = ["student.training.epochs=1"]
    assert main(["train", str(recipe_path), "--out", str(out), *short, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(out / "best.safetensors")
    assert (out / "best.safetensors").is_file()
    assert main(["train", str(recipe_path), "--out", str(out), *short]) == 0
    told = capsys.readouterr().out
    assert "tiny student: validation mAP" in told
    assert told.splitlines()[-1] == str(out / "best.safetensors")


def test_restart_clears_a_run_and_nothing_else(fails: Fails, recipe_path: Path, tmp_path: Path) -> None:
    keep = tmp_path / "holiday"
    keep.mkdir()
    (keep / "photo.jpg").write_bytes(b"x")
    assert "holds files but no run" in fails("train", str(recipe_path), "--out", str(keep), "--no-resume")
    assert [path.name for path in keep.iterdir()] == ["photo.jpg"]
