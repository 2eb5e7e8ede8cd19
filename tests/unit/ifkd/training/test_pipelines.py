"""Training of roles and distillation, and the provenance of their checkpoints."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ifkd import recipe
from ifkd.core.config import parse
from ifkd.core.errors import ConfigError, OutputError, TrainingError
from ifkd.core.files import sha256_of
from ifkd.distillation import FrozenModels
from ifkd.distillation.methods import IfkdMethod, NoDistillation
from ifkd.models.checkpoint import load_checkpoint
from ifkd.training import pipelines

Setup = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> Setup:
    """Data, the values of a recipe of one epoch, and its trained teacher and student. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    values = make_recipe(folder)
    for training in (values["teacher"]["training"], values["student"]["training"], values["distillation"]["training"]):
        training["epochs"] = 1
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.train_role(settings, "teacher", folder / "teacher")
    pipelines.train_role(settings, "student", folder / "student")
    return folder, values


class Prepared(Exception):  # noqa: N818
    """Stops a run before its training, with the arguments of the trainer."""

    def __init__(self, run: Any, detector: Any, method: Any, frozen_models: Any) -> None:
        super().__init__()
        self.run, self.detector, self.method, self.frozen_models = run, detector, method, frozen_models


def prepare(
    setup: Setup, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> Prepared:
    """Return the arguments of the trainer in a distillation."""
    values = copy.deepcopy(setup[1])
    change(values)

    def train(run: Any, detector: Any, *, method: Any = None, frozen_models: Any = None) -> None:
        raise Prepared(run, detector, method, frozen_models)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "train", train)
        settings = parse(values, recipe.Recipe, source="values")
        with pytest.raises(Prepared) as caught:
            pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", folder)
    return caught.value


def test_a_role_is_trained_with_its_options(setup: Setup) -> None:
    teacher = load_checkpoint(setup[0] / "teacher" / "best.safetensors").meta
    student = load_checkpoint(setup[0] / "student" / "best.safetensors").meta
    assert (teacher.detector.backbone, student.detector.backbone) == ("resnet18", "mobilenet_v2")
    assert teacher.category_ids == student.category_ids == (3, 7, 9)
    assert (teacher.provenance["role"], teacher.provenance["method"]) == ("teacher", "none")
    assert teacher.provenance["train_sha256"] == sha256_of(setup[0] / "train.json")
    assert teacher.provenance["versions"]["torch"] == str(torch.__version__)
    assert teacher.provenance["image_values"]["dtypes"] == ["uint8"]
    assert teacher.recipe == parse(setup[1], recipe.Recipe, source="values")


def test_distillation_starts_from_the_plain_students_weights(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(123)
    prepared = prepare(setup, tmp_path / "run", monkeypatch, lambda _: None)
    settings = parse(setup[1], recipe.Recipe, source="values")
    plain = pipelines._build_untrained(settings, settings.student.detector, 3).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in prepared.detector.state_dict().items())
    teacher = load_file(setup[0] / "teacher" / "best.safetensors")
    assert all(torch.equal(value, teacher[name]) for name, value in prepared.frozen_models.teacher.state_dict().items())


def test_the_method_knows_the_teachers_feature_scale(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"]["reference_rms"] = 0.3

    prepared = prepare(setup, tmp_path / "run", monkeypatch, change)
    assert isinstance(prepared.method, IfkdMethod)
    rms = pipelines.feature_rms(prepared.frozen_models.teacher, prepared.run.train_data, prepared.run.recipe)
    assert prepared.method._scales == pytest.approx([0.3 / value for value in rms])


def test_provenance_has_teacher_method_and_encoder(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance = prepare(setup, tmp_path / "run", monkeypatch, lambda _: None).run.meta.provenance
    assert provenance["teacher_sha256"] == sha256_of(setup[0] / "teacher" / "best.safetensors")
    assert provenance["method"]["alpha"] == 3.0
    assert provenance["notes"] == [pipelines.RANDOM_ENCODER_NOTE]


def test_a_run_is_not_resumed_with_another_balance(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factor of constant weights is a setting, too."""

    def planned(multiple: float) -> Any:
        def change(values: dict[str, Any]) -> None:
            values["distillation"] |= {"method": {"name": "cwd"}, "balance": {"multiple": multiple}}

        return prepare(setup, tmp_path / "run", monkeypatch, change).run

    run = planned(1.0)
    run.folder.claim(run.meta, run.label)
    run.folder.require_settings(planned(1.0).meta)
    with pytest.raises(OutputError, match=r"contains a run with other settings: .*balance"):
        planned(100.0)


def test_random_weights_replace_mobilesam_only_when_allowed(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The console says so, and the note of weights that the user chose gives no other reason."""
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))

    def fall_back(weight: float) -> Any:
        def change(values: dict[str, Any]) -> None:
            ede = {"weights": "mobile_sam", "fall_back_to_random": True, "weight": weight}
            values["distillation"]["method"]["ede"].update(ede)

        return prepare(setup, tmp_path / "run", monkeypatch, change).run.meta.provenance

    provenance = fall_back(1.0)
    assert provenance["method"]["ede"]["weights"] == "random"
    assert "the published checkpoint is not installed" in provenance["notes"][0]
    assert provenance["notes"][0] in caplog.messages
    assert "not installed" not in pipelines.RANDOM_ENCODER_NOTE
    assert fall_back(0.0)["notes"] == []


@pytest.mark.parametrize("ede", [{"enabled": False}, {"weight": 0.0}])
def test_mobilesam_is_built_only_when_it_is_used(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ede: dict[str, Any]
) -> None:
    prepared = prepare(
        setup, tmp_path / "run", monkeypatch, lambda values: values["distillation"]["method"]["ede"].update(ede)
    )
    assert isinstance(prepared.frozen_models, FrozenModels)
    assert prepared.frozen_models.sam is None


def test_no_method_is_plain_training(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"] = {"name": "none"}

    prepared = prepare(setup, tmp_path / "run", monkeypatch, change)
    assert isinstance(prepared.method, NoDistillation)
    assert prepared.frozen_models is None, "the teacher is not evaluated"
    assert prepared.method.parameter_groups(0.1) == []
    values = copy.deepcopy(setup[1])
    change(values)
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "run")
    ours, plain = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", setup[0] / "student"))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", ["arsd", "fkd"])
def test_a_method_without_weight_is_plain_training(name: str, setup: Setup, tmp_path: Path) -> None:
    weights = {"arsd": ("feature", "head", "boxes"), "fkd": ("feature", "attention", "non_local")}[name]
    values = copy.deepcopy(setup[1])
    values["distillation"]["method"] = {"name": name, **dict.fromkeys(weights, 0.0)}
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "run")
    ours, plain = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", setup[0] / "student"))
    assert set(ours) == set(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_the_student_of_fgd_inherits_the_teachers_head(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"] = {"name": "fgd"}

    prepared = prepare(setup, tmp_path / "run", monkeypatch, change)
    teacher, student = prepared.frozen_models.teacher.state_dict(), prepared.detector.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student if name.startswith("head."))


def test_caches_are_beside_the_runs(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"flip": False, "quarter_turns": False}
        values["distillation"]["method"]["ede"]["cache"] = True
        values["distillation"]["cache_teacher"] = True

    values = copy.deepcopy(setup[1])
    change(values)
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "distilled")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"teacher", "mobile_sam_native"}
    models = prepare(setup, tmp_path / "other", monkeypatch, change).frozen_models
    assert len(models._teacher_cache.store) == len(models._sam_cache.store) == 8


def test_unlimited_augmentation_cannot_be_cached(setup: Setup, tmp_path: Path) -> None:
    values = copy.deepcopy(setup[1])
    values["data"]["augmentation"] = {"scale_jitter": (0.8, 1.2)}
    values["distillation"]["cache_teacher"] = True
    settings = parse(values, recipe.Recipe, source="values")
    with pytest.raises(ConfigError, match=r"cannot be cached.*scale_jitter"):
        pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "distilled")


def test_runs_of_one_seed_use_one_cache_of_unlimited_augmentation(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"scale_jitter": (0.8, 1.2), "photometric": 0.2}
        values["distillation"] |= {"cache_teacher": True, "cache_scope": "seed"}

    def teacher_batches(method: str, folder: Path) -> list[int]:
        """Return the sizes of the teacher's batches in a run."""
        values = copy.deepcopy(setup[1])
        change(values)
        values["distillation"]["method"] = {"name": method}
        sizes: list[int] = []
        original = FrozenModels._run_teacher
        monkeypatch.setattr(FrozenModels, "_run_teacher", lambda self, x: sizes.append(len(x)) or original(self, x))
        settings = parse(values, recipe.Recipe, source="values")
        pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", folder)
        monkeypatch.setattr(FrozenModels, "_run_teacher", original)
        return sizes

    shape_probe = [1]
    assert sum(teacher_batches("frs", tmp_path / "frs-1")) > 8
    assert teacher_batches("pkd", tmp_path / "pkd-1") == shape_probe


def stop(*_: Any) -> None:
    raise InterruptedError


def test_splits_without_objects_are_reported_before_training(
    setup: Setup, tmp_path: Path, make_recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    values = make_recipe(tmp_path)
    values["distillation"]["min_teacher_map"] = 0.05
    settings = parse(values, recipe.Recipe, source="values")
    for name in ("train.json", "val.json"):
        content = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**content, "annotations": []}))

    monkeypatch.setattr(pipelines, "train", stop)
    with pytest.raises(InterruptedError):
        pipelines.train_role(settings, "student", tmp_path / "student")
    for expected in ("train.json, has no object: there is nothing to learn", "val.json, has no object: no mAP"):
        assert expected in caplog.text
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="validation mAP n/a, as no object is labeled"):
        pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "distilled")


def test_classes_without_an_object_are_reported_before_training(
    tmp_path: Path, make_recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = parse(make_recipe(tmp_path), recipe.Recipe, source="values")
    for name in ("train.json", "val.json"):
        content = json.loads((tmp_path / name).read_text())
        content["categories"].append({"id": 99, "name": "vessels"})
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.setattr(pipelines, "train", stop)
    with pytest.raises(InterruptedError):
        pipelines.train_role(settings, "student", tmp_path / "student")
    assert "Classes without an object in" in caplog.text
    assert "train.json: vessels." in caplog.text


@pytest.mark.parametrize(("side", "expected"), [(40, None), (20, "anchor_scale = 2.5"), (3, "anchor_scale = 1,")])
def test_objects_that_are_small_for_the_anchors_are_reported(
    side: int, expected: str | None, tmp_path: Path, make_recipe: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = parse(make_recipe(tmp_path), recipe.Recipe, source="values")
    content = json.loads((tmp_path / "train.json").read_text())
    for one in content["annotations"]:
        one["bbox"] = [4, 4, side * 1.25, side * 0.8]
    (tmp_path / "train.json").write_text(json.dumps(content))
    monkeypatch.setattr(pipelines, "train", stop)
    with pytest.raises(InterruptedError):
        pipelines.train_role(settings, "student", tmp_path / "student")
    assert ("smallest anchor has 32 px" in caplog.text) == (expected is not None)
    assert (expected or "") in caplog.text


def test_a_weak_teacher_is_refused_before_the_first_step(setup: Setup, tmp_path: Path) -> None:
    values = copy.deepcopy(setup[1])
    values["distillation"]["min_teacher_map"] = 0.9
    settings = parse(values, recipe.Recipe, source="values")
    with pytest.raises(TrainingError, match="too weak for distillation"):
        pipelines.distill_student(settings, setup[0] / "teacher" / "best.safetensors", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_resume_deletes_an_earlier_run_only(setup: Setup, tmp_path: Path) -> None:
    settings = parse(setup[1], recipe.Recipe, source="values")
    pipelines.train_role(settings, "student", tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    pipelines.train_role(settings, "student", tmp_path / "run", resume=False)
    assert not (tmp_path / "run" / "notes.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="contains files but no run"):
        pipelines.train_role(settings, "student", tmp_path / "other", resume=False)
