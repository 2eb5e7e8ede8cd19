"""Studies: runs are trained once, and a folder of another recipe is refused."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.study_records import evaluated_run

from deploy.cli.main import main
from ifkd.core.config import dump, load
from ifkd.core.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from ifkd.data.coco import CocoDataset
from ifkd.data.metrics import Metrics
from ifkd.models import Detector
from ifkd.recipe import Recipe
from ifkd.study import study as study_module
from ifkd.study.study import Study
from ifkd.study.study_record import EvaluatedRun, StudyRecord
from ifkd.study.variants import PLAIN, comparison_variants, custom_variant


def plan(folder: Path, recipe: Path, *overrides: str, **options: Any) -> Study:
    return Study(folder, recipe, overrides, **{"variants": (PLAIN,), "seeds": 1, **options})


@pytest.mark.usefixtures("runs_in_this_process")
def test_a_study_trains_once_and_refuses_another_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    command = ["study", "compare", str(recipe), "--methods", "pkd", "--seeds", "1", "--out", str(folder), "--json",
               "--variant", "half", "distillation.method.beta=0.25"]  # fmt: skip
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["students"]) == ["student", "pkd", "half"]
    assert "pkd feature" in result["conditions"]["gradients of the terms over the task's, at the end"]
    assert result["verdict"][-1] == "One seed has no interval, so no difference is proved."
    assert {path.name for path in folder.iterdir()} >= {"teacher", "student-5", "pkd-5", "study.html", "study.md"}
    assert (folder / "pkd-5" / "config.toml").read_text().count('name = "pkd"')

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("all runs are finished")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", forbidden)
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out) == result
        (folder / "pkd-5" / "test.json").write_text("{")  # it is computed again
        assert main(command) == 0
        assert json.loads(capsys.readouterr().out) == result
        assert main([*command, "--seeds", "2", "--report-only"]) == 0
        partial = StudyRecord.model_validate_json(capsys.readouterr().out)
        assert partial.unfinished == ["student-6", "pkd-6", "half-6"]
        assert partial.students["pkd"][0] == EvaluatedRun.model_validate(result["students"]["pkd"][0])
        assert sum(partial.machines.values()) == 4
        assert "torch" in next(iter(partial.machines))
        for method in (Study.run, Study.report):
            with pytest.raises(OutputError, match=r"a study of another recipe: data\.scale was 1\.0, is 2\.0"):
                method(plan(folder, recipe, "data.scale=2.0"))
            other = custom_variant("half", ["distillation.method.beta=0.3"])
            with pytest.raises(OutputError, match=r"half-5 was trained with another recipe: .*beta was 0\.25, is 0\.3"):
                method(plan(folder, recipe, variants=(PLAIN, other)))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for name, run in {"teacher": "teacher", "student-5": "student-5", "beta=0.25-5": "half-5"}.items():
        (sweep / name).symlink_to(folder / run)
    options = ["--parameter", "beta", "--values", "0.25", "0.5", "--seeds", "1", "--report-only", "--out", str(sweep)]
    assert main(["study", "sweep", str(recipe), *options]) == 0
    assert "not finished: beta=0.5-5" in capsys.readouterr().out
    assert "mAP by beta" in (sweep / "study.html").read_text(encoding="utf-8")
    assert {path.suffix for path in (sweep / "figures").iterdir()} == {".png", ".svg", ".pdf", ".csv"}
    (folder / "recipe.toml").unlink()
    with pytest.raises(OutputError, match=r"pkd-5 was trained with another recipe: .*epochs was 1, is 3"):
        plan(folder, recipe, "distillation.training.epochs=3", variants=comparison_variants(["pkd"])[1:]).report()
    old = json.loads((folder / "teacher" / "result.json").read_text())
    (folder / "teacher" / "result.json").write_text(json.dumps({**old, "schema_version": 1}))
    message = r"result\.json has another schema version: got 1, expected 2\. Train the run again with --no-resume\."
    with pytest.raises(DataError, match=message):
        plan(folder, recipe).report()
    (folder / "teacher" / "best.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        plan(folder, recipe).run()


@pytest.mark.usefixtures("runs_in_this_process")
def test_runs_are_tested_as_they_were_trained_and_on_the_present_labels(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant is tested with its scale and score threshold; runs that fit no seed or teacher are refused."""
    scales: dict[str, tuple[float, float]] = {}
    validate = study_module.validate

    def watched(detector: Detector, dataset: CocoDataset, used: Recipe) -> Metrics:
        scales[current[0]] = (used.data.scale, used.postprocess.score_threshold)
        return validate(detector, dataset, used)

    def named(study: Study, name: str, of_variant: Recipe) -> EvaluatedRun:
        current[0] = name
        return evaluate(study, name, of_variant)

    evaluate, current = Study._evaluate, [""]
    monkeypatch.setattr(study_module, "validate", watched)
    monkeypatch.setattr(Study, "_evaluate", named)
    folder = tmp_path / "study"
    larger = custom_variant("larger", ["data.scale=2.0", "postprocess.score_threshold=0.2"])
    study = plan(folder, recipe, variants=(PLAIN, larger))
    first = study.run()
    base = (study.recipe.data.scale, study.recipe.postprocess.score_threshold)
    assert scales == {"teacher": base, "student-5": base, "larger-5": (2.0, 0.2)}
    scales.clear()
    assert study.report() == first
    assert not scales
    labels = study.recipe.data.root / study.recipe.data.test
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    assert study.report().students["student"][0].metrics.objects == 1
    assert set(scales) == {"teacher", "student-5", "larger-5"}
    labels.unlink()
    assert study.report().students["student"][0].metrics.objects == 1  # finished results need no data

    shutil.copytree(folder / "student-5", folder / "student-6")
    with pytest.raises(OutputError, match=r"student-6 was trained with another recipe: seed was 5, is 6"):
        plan(folder, recipe, variants=(PLAIN,), seeds=2).report()
    teacher = folder / "teacher" / "best.safetensors"
    teacher.write_bytes((folder / "teacher" / "last.safetensors").read_bytes() + b" ")
    with pytest.raises(OutputError, match=r"student-5 was distilled from another teacher than .*: got SHA-256"):
        plan(folder, recipe)._check_recipes((PLAIN,))


def test_a_folder_without_finished_runs_has_no_report(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    command = ["study", "compare", str(recipe), "--report-only", "--out", str(folder)]
    assert main(command) == 2
    assert f"{folder} contains no study" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    (folder / "recipe.toml").write_text(dump(load(recipe, Recipe)))
    assert main(command) == 2
    assert f"The teacher of {folder} is not finished" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"]


def test_a_test_split_without_objects_stops_the_study_before_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = plan(tmp_path / "study", recipe)
    path = study.recipe.data.root / study.recipe.data.test
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(DataError, match="has no labeled object, so runs cannot be compared on it"):
        study.run()


def test_an_invalid_variant_stops_the_study_before_training(recipe: Path, tmp_path: Path) -> None:
    variants = comparison_variants(["pkd"])
    with pytest.raises(ConfigError, match=r"pkd.*channels"):
        plan(tmp_path / "study", recipe, "teacher.detector.channels=8", variants=variants).run()
    assert not (tmp_path / "study").exists()


def test_other_settings_of_the_plain_student_are_reported(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All students are trained with distillation.training, so another student.training has no effect."""
    clip = "student.training.optimizer.grad_clip=3"
    alike = plan(tmp_path, recipe, clip, "distillation.training.optimizer.grad_clip=3", variants=())
    assert "plain student" not in alike._record(evaluated_run(0.4)).conditions
    other = plan(tmp_path, recipe, clip, "distillation.training.optimizer.grad_clip=35", variants=())
    note = "student.training differs: optimizer.grad_clip was 3.0, is 35.0"
    assert note in other._record(evaluated_run(0.4)).conditions["plain student"]
    invalid = replace(
        other, overrides=(*other.overrides, "teacher.detector.channels=8"), variants=comparison_variants(["pkd"])
    )
    with pytest.raises(ConfigError):
        invalid.run()
    assert note in caplog.text


def test_failed_runs_are_named_with_their_log(recipe: Path, tmp_path: Path) -> None:
    """The image exists when the data are checked, and is invalid when the run reads it."""
    next((tmp_path / "data" / "images").glob("train_*")).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"1 of 1 runs failed: teacher\. See .*logs.teacher\.txt for the reason"):
        plan(tmp_path / "study", recipe).run()
    assert "error: " in (tmp_path / "study" / "logs" / "teacher.txt").read_text()


@pytest.mark.parametrize("content", ["{}", '{"images": [], "annotations": [], "categories": []}', None])
def test_an_invalid_test_split_is_found_before_the_training(recipe: Path, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "data" / "other.json"
    if content is not None:
        path.write_text(content)
    study = plan(tmp_path / "study", recipe, "data.test=other.json")
    with pytest.raises(DataError, match=r"other\.json"):
        study.run()
    assert not (tmp_path / "study").exists()
