"""Tuning of methods on the validation part, with an equal number of trials."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.study_records import evaluated_run

from deploy.cli.main import main
from ifkd.core.config import load
from ifkd.core.errors import DataError, TrainingError, UsageError
from ifkd.data.metrics import Metrics
from ifkd.recipe import Recipe
from ifkd.study.run_launcher import RunLauncher
from ifkd.study.study import Study
from ifkd.study.tuning import MAX_TRIALS, OPTIONS, other_values, read_tuning_record, tune, tuned_variants
from ifkd.training.run_folder import TrainingResult

CONFIGS = Path(__file__).parents[4] / "configs"


class FakeRuns:
    """Replaces trainings: a run's validation mAP is a function of its factor of weights and of its option."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.diverging: set[str] = set()
        self.failing: set[str] = set()
        monkeypatch.setattr(RunLauncher, "launch", lambda launcher, commands: self._launch(launcher.folder, commands))
        monkeypatch.setattr(Study, "_check_recipes", lambda *_: None)  # the fake runs have no checkpoints

    def _launch(self, folder: Path, commands: dict[str, Sequence[str]]) -> None:
        pending = [name for name in commands if not (folder / name / "result.json").is_file()]
        self.names += pending
        for name in set(pending) - self.failing:
            (folder / name).mkdir(parents=True, exist_ok=True)
            if name in self.diverging:
                (folder / name / "nonfinite_batch.safetensors").touch()
                continue
            score = self.score(" ".join(commands[name]))
            metrics = Metrics(mean_ap=score, ap50=score, ap75=score, images=1, objects=1, per_class={})
            result = TrainingResult(label=name, checkpoint="best.safetensors", best_validation_map=score,
                                    last_validation=metrics, epochs=1, iterations=1, train_seconds=1.0,
                                    machine="none")  # fmt: skip
            (folder / name / "result.json").write_text(result.model_dump_json())
        if failed := sorted(set(pending) & (self.failing | self.diverging)):
            raise TrainingError(f"{len(failed)} runs failed")

    @staticmethod
    def score(command: str) -> float:
        """Return the mAP of a run: FGD is best with 30 times its weights at a temperature of 1, others as published."""
        factor = float(command.rpartition("balance.multiple=")[2].partition(" ")[0]) if "multiple=" in command else 1.0
        decades = abs(math.log10(factor / (30.0 if "fgd" in command else 1.0)))
        return 0.5 - 0.1 * decades + (0.02 if "temperature=1.0" in command and "fgd" in command else 0.0)


def study(folder: Path, recipe: Path, *overrides: str, seeds: int = 1) -> Study:
    return Study(folder, recipe, overrides, variants=(), seeds=seeds)


def test_every_option_of_a_grid_is_accepted_by_its_method(recipe: Path) -> None:
    """A grid's values are valid; those beside the first one differ from it."""
    for method, (key, _) in OPTIONS.items():
        start = () if method == "ifkd" else (f'distillation.method={{name="{method}"}}',)
        default = load(recipe, Recipe, start)
        values = other_values(method, default)
        found = [load(recipe, Recipe, (*start, f"{key}={value}")).distillation.method for value in values]
        assert len({*found, default.distillation.method}) == 1 + len(values) > 1


def test_no_value_repeats_the_first_trial() -> None:
    """FKD's temperature depends on the detector, and the paper's recipes have IFKD's filter."""
    one_stage, two_stages = (next(CONFIGS.glob(f"paper/*{name}*.toml")) for name in ("retinanet", "faster_rcnn"))
    fkd = 'distillation.method={name="fkd"}'
    assert other_values("fkd", load(one_stage, Recipe, (fkd,))) == ("0.5",)
    assert other_values("fkd", load(two_stages, Recipe, (fkd,))) == ("0.1",)
    assert other_values("ifkd", load(one_stage, Recipe)) == ("none",)
    assert other_values("ifkd", load(CONFIGS / "demo.toml", Recipe)) == ("grid",)


def test_the_search_finds_the_best_setting_with_the_same_number_of_trials(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(monkeypatch)
    record = tune(study(tmp_path / "study", recipe, seeds=2), ["fgd", "cwd"], trials=MAX_TRIALS)
    assert {len(found.trials) for found in record.methods.values()} == {MAX_TRIALS}
    assert record.methods["cwd"].best.label == "cwd"
    assert record.methods["fgd"].best.label == "fgd+weight=30+temperature=1.0"
    assert record.methods["fgd"].best.overrides == (
        'distillation.method={name="fgd"}', 'distillation.balance.form="constant"', "distillation.balance.multiple=1.0",
        "distillation.balance.multiple=30", "distillation.method.temperature=1.0",
    )  # fmt: skip
    assert all(runs.names.count(name) == 1 for name in runs.names)
    assert len(runs.names) == 1 + 2 * 2 * MAX_TRIALS  # the teacher, and each setting with two seeds
    for found in record.methods.values():
        assert len({trial.overrides for trial in found.trials}) == MAX_TRIALS
    assert read_tuning_record(tmp_path / "study" / "tuning.json") == record


def test_an_interrupted_search_continues_with_the_same_settings(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(monkeypatch)
    whole = tune(study(tmp_path / "whole", recipe), ["fgd"], trials=5)
    tune(study(tmp_path / "parts", recipe), ["fgd"], trials=2)
    before = len(runs.names)
    assert tune(study(tmp_path / "parts", recipe), ["fgd"], trials=5) == whole
    assert len(runs.names) - before == 3


def test_methods_tuned_one_after_the_other_share_a_file(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeRuns(monkeypatch)
    both = tune(study(tmp_path / "both", recipe), ["fgd", "cwd"], trials=4)
    tune(study(tmp_path / "apart", recipe), ["fgd"], trials=4)
    assert tune(study(tmp_path / "apart", recipe), ["cwd"], trials=4) == both
    assert tune(study(tmp_path / "apart", recipe), ["cwd"], trials=1) == both
    other = tune(study(tmp_path / "apart", recipe, seeds=2), ["cwd"], trials=1)
    assert list(other.methods) == ["cwd"]  # another search


def test_a_trial_that_diverges_counts_as_the_worst_and_other_failures_stop(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = FakeRuns(monkeypatch)
    runs.diverging = {"fgd+weight=3-5"}
    record = tune(study(tmp_path / "study", recipe), ["fgd"], trials=3)
    failed = record.methods["fgd"].trials[1]
    assert (failed.label, failed.validation_map) == ("fgd+weight=3", None)
    assert record.methods["fgd"].best.label != failed.label
    assert "1 runs failed" in caplog.text
    runs.failing = {"cwd+weight=3-5"}  # for example without memory
    with pytest.raises(TrainingError, match="1 runs failed"):
        tune(study(tmp_path / "study", recipe), ["cwd"], trials=3)


def test_a_published_setting_that_diverges_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = FakeRuns(monkeypatch)
    runs.diverging = {"fkd-5"}
    record = tune(study(tmp_path / "study", recipe), ["fkd", "cwd"], trials=3)
    assert record.methods["fkd"].trials[0].validation_map is None
    assert record.methods["fkd"].best.label != "fkd"
    assert len(record.methods["cwd"].trials) == 3
    runs.diverging = {"fkd-5", "cwd-5"}
    with pytest.raises(TrainingError, match="2 runs failed"):
        tune(study(tmp_path / "all", recipe), ["fkd", "cwd"], trials=3)


def test_weights_of_a_recipe_are_multiplied(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe's own multiple of 2, three times the weight is a multiple of 6."""
    FakeRuns(monkeypatch)
    multiple = "distillation.balance.multiple=2.0"
    record = tune(study(tmp_path / "study", recipe, multiple), ["ifkd"], trials=2)
    assert record.methods["ifkd"].trials[1].overrides == ("distillation.balance.multiple=6",)
    assert record.methods["ifkd"].grid["distillation.balance.multiple"][:2] == ("2", "6")


def test_the_command_tunes_and_a_comparison_shows_both_rows(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published setting is trained once, because both commands use one folder."""
    runs = FakeRuns(monkeypatch)
    monkeypatch.setattr(Study, "_evaluate", lambda *_: evaluated_run(0.3))
    folder = tmp_path / "study"
    options = [str(recipe), "--methods", "fgd", "cwd", "--seeds", "1", "--out", str(folder)]
    assert main(["study", "tune", *options, "--trials", "2"]) == 0
    shown = capsys.readouterr().out.split()
    assert shown[-1] == str(folder / "tuning.json")
    assert shown[shown.index("fgd") :][:4] == ["fgd", "35.2", "40.0", "fgd+weight=3"]
    before = len(runs.names)
    assert main(["study", "compare", *options, "--tuned", str(folder / "tuning.json"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["students"]) == ["student", "fgd", "cwd", "fgd+weight=3"]
    assert "the best of 2 settings of each method" in result["conditions"]["tuned rows"]
    assert runs.names[before:] == ["student-5"]


def test_a_validation_part_without_objects_is_refused(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "data" / load(recipe, Recipe).data.validation
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="has no labeled object for validation"):
        tune(study(tmp_path / "study", recipe), ["fgd"], trials=2)


def test_too_many_trials_and_unknown_methods_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"expected at most {MAX_TRIALS}"):
        tune(study(tmp_path / "study", recipe), ["fgd"], trials=MAX_TRIALS + 1)
    with pytest.raises(UsageError, match="Did you mean 'fgd'"):
        tune(study(tmp_path / "study", recipe), ["fgdd"], trials=2)
    assert not (tmp_path / "study").exists()


def test_a_comparison_takes_tuned_settings_only_on_equal_terms(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeRuns(monkeypatch)
    path = tmp_path / "study" / "tuning.json"
    record = tune(study(tmp_path / "study", recipe), ["fgd", "cwd"], trials=4)
    assert [one.label for one in tuned_variants(record, ["cwd", "fgd"], path)] == [record.methods["fgd"].best.label]
    with pytest.raises(UsageError, match=r"tuning\.json has no trials of pkd"):
        tuned_variants(record, ["pkd", "fgd"], path)
    fewer = record.methods["cwd"].model_copy(update={"trials": record.methods["cwd"].trials[:2]})
    unequal = record.model_copy(update={"methods": record.methods | {"cwd": fewer}})
    with pytest.raises(UsageError, match=r"unequal numbers of trials: got fgd 4, cwd 2"):
        tuned_variants(unequal, ["fgd", "cwd"], path)
