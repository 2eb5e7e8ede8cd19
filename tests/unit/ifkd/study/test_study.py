"""Studies: what they train, that nothing is trained twice, and what their tables say."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from deploy.cli.main import main
from ifkd.core.config import dump, load
from ifkd.core.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError, UsageError
from ifkd.data.metrics import ClassMetrics, Metrics
from ifkd.distillation.methods import METHODS as BUILT
from ifkd.recipe import Recipe
from ifkd.study.learning_curves import Curve, Learning, learning, over_runs, thinned
from ifkd.study.study import Study, StudyFindings
from ifkd.study.study_record import Outcome, StudyRecord, gains, read_record, seed_spread
from ifkd.study.study_report import class_tables, study_table, write_study
from ifkd.study.variant import METHODS, PLAIN, ablated, compared, swept


def reached(*shares: float) -> Outcome:
    """Return what a detector reached: mAP, AP50 and AP75."""
    mean_ap, ap50, ap75 = shares
    per_class = {
        "ferry": ClassMetrics(mean_ap=mean_ap, ap50=ap50, ap75=ap75, objects=3),
        "tug": ClassMetrics(mean_ap=None, ap50=None, ap75=None, objects=0),
    }
    metrics = Metrics(mean_ap=mean_ap, ap50=ap50, ap75=ap75, images=2, objects=3, per_class=per_class)
    return Outcome(metrics=metrics, seconds=60.0, checkpoint_sha256="0" * 64)


def record(**changes: Any) -> StudyRecord:
    """Return a study of two seeds."""
    students = {
        "student": (reached(0.30, 0.50, 0.31), reached(0.34, 0.56, 0.33)),
        "fgd": (reached(0.33, 0.55, 0.35), reached(0.35, 0.57, 0.34)),
        "ifkd": (reached(0.36, 0.60, 0.38), reached(0.41, 0.62, 0.41)),
    }
    values = {"title": "Methods <compared>", "recipe": "harbor", "recipe_toml": 'name = "harbor"', "seeds": (4, 5)}
    return StudyRecord(**values, teacher=reached(0.40, 0.61, 0.40), students=students, **changes)


def test_every_method_can_be_compared() -> None:
    assert set(METHODS) == set(BUILT) - {"none"}
    variants = compared(METHODS, own="ifkd")
    assert [one.label for one in variants] == ["student", *METHODS]
    assert variants[-1].overrides == ()
    assert variants[3].overrides == ('distillation.method={name="fkd"}',)


def test_an_unknown_method_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match=r"no method 'fdg'.*Did you mean 'f[gk]d'"):
        compared(["ifkd", "fdg"], own="ifkd")
    with pytest.raises(UsageError, match="alpha or beta"):
        swept("gamma")


def test_the_ablation_has_table_4s_rows() -> None:
    labels = [one.label for one in ablated(with_at=True)]
    assert labels == ["student", "at", "at+ede", "at+fdr", "at+hsm", "at+ede+fdr", "at+ede+hsm", "at+fdr+hsm",
                      "at+ede+fdr+hsm"]  # fmt: skip
    row = ablated(with_at=False)[2]
    assert row.label == "ede"
    assert set(row.overrides) == {
        "distillation.method.ede.enabled=true", "distillation.method.fdr.enabled=false",
        "distillation.method.hsm.enabled=false", "distillation.method.with_at=false",
    }  # fmt: skip
    assert [one.value for one in swept("beta", [0.2, 0.4])] == [None, 0.2, 0.4]


def test_spreads_are_numpys() -> None:
    values = [0.31, 0.35, 0.30]
    assert seed_spread(values).mean == pytest.approx(100 * np.mean(values))
    assert seed_spread(values).deviation == pytest.approx(100 * np.std(values, ddof=1))
    assert seed_spread([0.5]).deviation is None
    assert str(seed_spread([0.5])) == "50.0"


def test_gains_are_paired_by_seed() -> None:
    gain = gains(record(), "ifkd")
    assert gain is not None
    assert (gain.mean, gain.deviation) == (pytest.approx(6.5), pytest.approx(np.std([6.0, 7.0], ddof=1)))
    table = study_table(record(data_set="shiprsimagenet"))
    assert table.headings[-1] == "paper"
    rows = {row[0]: row for row in table.rows}
    assert rows["ifkd"] == ("ifkd", "38.5 ± 3.5", "61.0 ± 1.4", "39.5 ± 2.1", "+6.5 ± 0.7", "-1.5", "1.0",
                            "46.1 / 59.8 / 51.5")  # fmt: skip
    assert rows["student"][4] == ""
    assert "paper" not in study_table(record()).headings


def test_classes_are_told_one_by_one_with_their_mean_over_seeds() -> None:
    whole, at_50 = class_tables(record())
    assert whole.headings == at_50.headings == ("class", "objects", "teacher", "student", "fgd", "ifkd")
    assert whole.rows == (("ferry", "3", "40.0", "32.0", "34.0", "38.5"),)
    assert at_50.rows == (("ferry", "3", "61.0", "53.0", "56.0", "61.0"),)


def test_what_is_not_finished_is_told_and_left_out_of_means() -> None:
    partial = record()
    second = (partial.students["ifkd"][0], None)
    partial = partial.model_copy(update={"students": {**partial.students, "ifkd": second, "pkd": (None, None)}})
    assert partial.missing == ["ifkd-5", "pkd-4", "pkd-5"]
    rows = {row[0]: row for row in study_table(partial).rows}
    assert rows["ifkd"][1:5] == ("36.0", "60.0", "38.0", "+6.0")
    assert rows["ifkd"][-1] == "1 of 2"
    assert rows["pkd"][1:] == (*["–"] * 6, "0 of 2")
    assert gains(partial, "pkd") is None
    assert "pkd" not in class_tables(partial)[0].headings


def test_a_record_of_an_older_version_is_read() -> None:
    newer = {"parameter", "values", "conditions", "machines"}
    assert StudyRecord.model_validate(record().model_dump(mode="json", exclude=newer)) == record()


def test_curves_are_numpys_means_over_runs(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folders = [tmp_path / "a", tmp_path / "b"]
    losses = random.uniform(0.5, 2.0, (2, 90, 3))
    scores = random.uniform(0.0, 0.5, (2, 4))
    for folder, terms, reached_ in zip(folders, losses, scores, strict=True):
        folder.mkdir()
        lines: list[dict[str, Any]] = [
            {"iteration": 10 * i, "task/classes": a, "task/boxes": b, "method/feature": c, "raw/feature": 9.0}
            for i, (a, b, c) in enumerate(terms.tolist())
        ]
        lines += [{"epoch": epoch, "validation": {"mean_ap": value}} for epoch, value in enumerate(reached_.tolist())]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 9')
    found = learning(folders)
    assert found.validation.places == (0, 1, 2, 3)
    assert found.validation.mean == pytest.approx(100 * scores.mean(0))
    assert found.validation.least == pytest.approx(100 * scores.min(0))
    assert list(found.losses) == ["task", "feature"]
    task = losses[:, :, :2].sum(-1)
    assert found.losses["task"].mean == pytest.approx(task.mean(0).reshape(-1, 2).mean(1))
    assert found.losses["task"].greatest == pytest.approx(task.max(0).reshape(-1, 2).mean(1))
    assert found.losses["feature"].places == pytest.approx(np.arange(0, 900, 10).reshape(-1, 2).mean(1))
    assert learning([tmp_path / "none"]) == Learning(over_runs([]), {})
    assert thinned(over_runs([{1.0: 2.0}])) == Curve((1.0,), (2.0,), (2.0,), (2.0,))


def learned() -> dict[str, Learning]:
    """Return curves of the record's students."""
    curve = over_runs([{1.0: 10.0, 2.0: 20.0}, {1.0: 14.0, 2.0: 26.0}])
    loss = over_runs([{0.0: 2.0, 10.0: 0.5}])
    return {label: Learning(curve, {"task": loss, "feature": loss}) for label in ("teacher", *record().students)}


def sweep() -> StudyRecord:
    """Return a sweep of alpha over two seeds, one run of which is missing."""
    runs = {"student": (reached(0.30, 0.5, 0.3), reached(0.34, 0.5, 0.3)),
            "alpha=0.02": (reached(0.35, 0.5, 0.3), reached(0.37, 0.5, 0.3)),
            "alpha=0.06": (reached(0.38, 0.5, 0.3), None)}  # fmt: skip
    values = {"alpha=0.02": 0.02, "alpha=0.06": 0.06}
    return record().model_copy(update={"students": runs, "parameter": "alpha", "values": values})


def test_the_page_looks_right_on_a_phone_and_a_desk(open_page: Callable[..., Any], tmp_path: Path) -> None:
    write_study(sweep(), tmp_path / "sweep", learned())
    write_study(record(), tmp_path / "compared", learned())
    for name, width, scheme in (("compared", 1280, "light"), ("compared", 390, "dark"), ("sweep", 390, "light")):
        visit = open_page(tmp_path / name / "study.html", width=width, scheme=scheme)
        assert visit.errors == []
        assert visit.overflow_px() == 0
        assert visit.page.locator("svg.chart").count() == 2 + 4  # results, validation, and each variant's losses
        visit.page.locator("summary").first.click()
        assert visit.page.locator("svg.chart").last.is_visible()
        assert visit.overflow_px() == 0
    assert "alpha=0.06-5" in visit.page.locator(".notes").inner_text()


def test_the_page_is_valid_and_says_the_same(tmp_path: Path, html_errors: Callable[..., list[str]]) -> None:
    paths = write_study(record(machines={"a <machine>": 7}, conditions={"data": "a & b"}), tmp_path, learned())
    assert StudyRecord.model_validate_json(paths[0].read_bytes()).students == record().students
    assert "| ifkd | 38.5 ± 3.5 |" in paths[1].read_text(encoding="utf-8")
    assert "Methods &lt;compared&gt;" in paths[2].read_text(encoding="utf-8")
    assert "- data: a & b\n- trained on: a <machine> (7 runs)" in paths[1].read_text(encoding="utf-8")
    write_study(sweep(), tmp_path / "sweep")
    assert html_errors(paths[2], tmp_path / "sweep" / "study.html") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"at title: expected Field required\. Write it anew: the study's command with --report-only"),
        ("torn {", "at the file: expected Invalid JSON"),
    ],
)
def test_a_record_of_another_version_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(DataError, match=rf"study\.json is no record of a study of this version, {message}"):
        read_record(tmp_path / "study.json")
    with pytest.raises(DataError, match=r"absent\.json cannot be read"):
        read_record(tmp_path / "absent.json")


def test_what_gives_no_line_is_left_out_of_the_page(tmp_path: Path) -> None:
    """Runs of a single epoch were validated once, and a term of weight 0 has no logarithm."""
    once = Learning(over_runs([{1.0: 10.0}]), {"task": over_runs([{0.0: 0.0, 10.0: 0.0}])})
    page = write_study(record(), tmp_path, {"teacher": once})[-1].read_text(encoding="utf-8")
    assert (page.count('class="chart"'), "Validation mAP by epoch" in page) == (1, False)
    page = write_study(record(), tmp_path, {"teacher": once, "pkd": learned()["ifkd"]})[-1].read_text(encoding="utf-8")
    assert (page.count('class="chart"'), "Validation mAP by epoch" in page) == (3, True)


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: dict[str, Any]) -> Path:
    """Return a recipe over tiny data, by IFKD without MobileSAM."""
    values = recipe_values
    values["distillation"]["method"] = {"name": "ifkd", "ede": {"enabled": False}}
    for part in (values["teacher"], values["student"], values["distillation"]):
        part["training"]["epochs"] = 1
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def test_a_study_trains_once_and_refuses_another_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words = ["study", "compare", str(recipe), "--methods", "pkd", "--seeds", "1", "--out", str(folder), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["students"]) == ["student", "pkd"]
    assert {path.name for path in folder.iterdir()} >= {"teacher", "student-5", "pkd-5", "study.html", "study.md"}
    assert (folder / "pkd-5" / "config.toml").read_text().count('name = "pkd"')

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to train")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", forbidden)
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == told
        (folder / "pkd-5" / "test.json").write_text("{")  # it can be made again
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == told
        assert main([*words, "--seeds", "2", "--report-only"]) == 0
        partial = StudyRecord.model_validate_json(capsys.readouterr().out)
        assert partial.missing == ["student-6", "pkd-6"]
        assert partial.students["pkd"][0] == Outcome.model_validate(told["students"]["pkd"][0])
        assert sum(partial.machines.values()) == 3
        assert "torch" in next(iter(partial.machines))
        for verb in (Study.run, Study.finished):
            with pytest.raises(OutputError, match=r"study of another recipe: data\.scale was 1\.0, is 2\.0"):
                verb(Study(folder, recipe, ("data.scale=2.0",), seeds=1), [PLAIN])
    swept_folder = tmp_path / "sweep"
    swept_folder.mkdir()
    for name, run in {"teacher": "teacher", "student-5": "student-5", "beta=0.3-5": "pkd-5"}.items():
        (swept_folder / name).symlink_to(folder / run)
    words = [
        "study",
        "sweep",
        str(recipe),
        "--parameter",
        "beta",
        "--values",
        "0.3",
        "0.5",
        "--seeds",
        "1",
        "--report-only",
    ]
    assert main([*words, "--out", str(swept_folder)]) == 0
    assert "not finished: beta=0.5-5" in capsys.readouterr().out
    assert "mAP against beta" in (swept_folder / "study.html").read_text(encoding="utf-8")
    assert {path.suffix for path in (swept_folder / "figures").iterdir()} == {".png", ".svg", ".pdf", ".csv"}
    (folder / "recipe.toml").unlink()
    with pytest.raises(OutputError, match=r"pkd-5 was trained by another recipe: .*epochs was 1, is 3"):
        Study(folder, recipe, ("distillation.training.epochs=3",), seeds=1).finished(compared(["pkd"], own="ifkd")[1:])
    (folder / "teacher" / "best.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        Study(folder, recipe, (), seeds=1).run([PLAIN])


def test_nothing_is_reported_where_nothing_was_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words = ["study", "compare", str(recipe), "--report-only", "--out", str(folder)]
    assert main(words) == 2
    assert f"{folder} holds no study" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    (folder / "recipe.toml").write_text(dump(load(recipe, Recipe)))
    assert main(words) == 2
    assert "The teacher of" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["recipe.toml"]


def test_a_variant_that_does_not_fit_stops_before_training(recipe: Path, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", recipe, ("teacher.detector.channels=8",), seeds=1)
    with pytest.raises(ConfigError, match="requires equal channels"):
        study.run(compared(["pkd"], own="ifkd"))
    assert not (tmp_path / "study").exists()


def test_a_plain_student_that_learns_otherwise_than_alone_is_told(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A study's students all learn by distillation.training, so that another student.training would be left out."""
    found, alike = (
        StudyFindings(reached(0.4, 0.6, 0.4), {}),
        ("student.training.optimizer.grad_clip=3", "distillation.training.optimizer.grad_clip=3"),
    )
    assert "plain student" not in Study(tmp_path, recipe, alike, seeds=1).record(found, [], title="").conditions
    other = Study(tmp_path, recipe, (alike[0], "distillation.training.optimizer.grad_clip=35"), seeds=1)
    told = "student.training is another: optimizer.grad_clip was 3.0, is 35.0"
    assert told in other.record(found, [], title="").conditions["plain student"]
    with pytest.raises(ConfigError, match="requires equal channels"):
        replace(other, overrides=(*other.overrides, "teacher.detector.channels=8")).run(compared(["pkd"], own="ifkd"))
    assert told in caplog.text


def test_failed_runs_are_named_with_their_log(recipe: Path, tmp_path: Path) -> None:
    """The data are found when the recipe is read, and not when it runs."""
    (tmp_path / "data" / "train.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"1 of 1 runs failed: teacher\. .*logs.teacher\.txt tells why"):
        Study(tmp_path / "study", recipe, (), seeds=1).run([PLAIN])
    assert "ifkd: " in (tmp_path / "study" / "logs" / "teacher.txt").read_text()


@pytest.mark.parametrize(("gpus", "seen"), [(4, {"0,1", "2,3"}), (2, {"0,1"}), (0, {None})])
def test_runs_at_once_see_gpus_of_their_own_as_far_as_they_go(
    gpus: int, seen: set[str | None], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, told = Barrier(2, timeout=60), []

    def run(_: list[str], *, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[bytes]:
        told.append(env.get("CUDA_VISIBLE_DEVICES"))
        together.wait()
        return subprocess.CompletedProcess([], 0)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(subprocess, "run", run)
    study = Study(tmp_path / "study", recipe, (), seeds=1, jobs=2, processes=2)
    study._all_at_once({name: ["distill"] for name in ("a", "b", "c", "d")})
    assert (set(told[:2]), set(told), len(told)) == (seen, seen, 4)


@pytest.mark.parametrize(
    ("jobs", "processes", "said", "seen"),
    [(2, 1, None, "4"), (2, 2, None, "2"), (5, 3, None, "1"), (1, 1, None, None), (2, 1, "6", "6")],
)
def test_runs_at_once_share_the_cores_unless_the_user_says_otherwise(
    jobs: int, processes: int, said: str | None, seen: str | None,
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    told: list[str | None] = []

    def run(_: list[str], *, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[bytes]:
        told.append(env.get("OMP_NUM_THREADS"))
        return subprocess.CompletedProcess([], 0)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr("ifkd.study.study.usable_cores", lambda: 8)
    monkeypatch.setattr(subprocess, "run", run)
    study = Study(tmp_path / "study", recipe, (), seeds=1, jobs=jobs, processes=processes)
    study._all_at_once({name: ["distill"] for name in ("a", "b")})
    assert told == [seen, seen]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1: got 0"),
        (["--set", 'distillation.method={name="frs"}'], "must name IFKD as its method"),
        (["--methods", "frss"], "Did you mean 'frs'?"),
    ],
)
def test_wrong_words_are_told(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["study", "compare", str(recipe), "--out", str(tmp_path / "study"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
