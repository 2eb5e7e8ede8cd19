"""Runs: what a recipe's words set in motion, and what a checkpoint says of where it came from."""

import copy
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
from ifkd.models import Detector
from ifkd.models.checkpoint import load_checkpoint
from ifkd.training import pipelines
from ifkd.training.prediction import validate

World = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> World:
    """Data, a recipe of one epoch, and its trained teacher and student."""
    folder = tmp_path_factory.mktemp("runs")
    values = make_recipe(folder)
    for training in (values["teacher"]["training"], values["student"]["training"], values["distillation"]["training"]):
        training["epochs"] = 1
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.train_role(settings, "teacher", folder / "teacher")
    pipelines.train_role(settings, "student", folder / "student")
    return folder, values


class Fitted(Exception):  # noqa: N818
    """Ends a run where it would begin to train, and keeps what it was given."""

    def __init__(self, run: Any, detector: Any, method: Any, knowledge: Any) -> None:
        super().__init__()
        self.run, self.detector, self.method, self.knowledge = run, detector, method, knowledge


def prepared(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> Fitted:
    """Return what a distillation hands to the trainer."""
    values = copy.deepcopy(world[1])
    change(values)

    def fit(run: Any, detector: Any, *, method: Any = None, knowledge: Any = None) -> None:
        raise Fitted(run, detector, method, knowledge)

    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "fit", fit)
        settings = parse(values, recipe.Recipe, source="values")
        with pytest.raises(Fitted) as caught:
            pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", folder)
    return caught.value


def test_a_role_is_trained_as_its_part_of_the_recipe(world: World) -> None:
    teacher = load_checkpoint(world[0] / "teacher" / "best.safetensors").meta
    student = load_checkpoint(world[0] / "student" / "best.safetensors").meta
    assert (teacher.detector.backbone, student.detector.backbone) == ("resnet18", "mobilenet_v2")
    assert teacher.category_ids == student.category_ids == (3, 7, 9)
    assert (teacher.provenance["role"], teacher.provenance["method"]) == ("teacher", "none")
    assert teacher.provenance["train_sha256"] == sha256_of(world[0] / "train.json")
    assert teacher.provenance["versions"]["torch"] == str(torch.__version__)
    assert teacher.recipe == parse(world[1], recipe.Recipe, source="values")


def test_distillation_starts_from_the_plain_students_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(123)
    fitted = prepared(world, tmp_path / "run", monkeypatch, lambda _: None)
    settings = parse(world[1], recipe.Recipe, source="values")
    plain = pipelines._fresh_detector(settings, settings.student.detector, 3).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in fitted.detector.state_dict().items())
    teacher = load_file(world[0] / "teacher" / "best.safetensors")
    assert all(torch.equal(value, teacher[name]) for name, value in fitted.knowledge.teacher.state_dict().items())


def test_the_method_knows_the_teachers_feature_scale(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"]["reference_rms"] = 0.3

    fitted = prepared(world, tmp_path / "run", monkeypatch, change)
    assert isinstance(fitted.method, IfkdMethod)
    rms = pipelines.feature_rms(fitted.knowledge.teacher, fitted.run.train_data, fitted.run.settings)
    assert fitted.method._scales == pytest.approx([0.3 / value for value in rms])


def test_a_checkpoint_tells_of_its_teacher_method_and_encoder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = prepared(world, tmp_path / "run", monkeypatch, lambda _: None).run.meta.provenance
    assert told["teacher_sha256"] == sha256_of(world[0] / "teacher" / "best.safetensors")
    assert told["method"]["alpha"] == 0.06
    assert told["notes"] == [pipelines.RANDOM_ENCODER_NOTE]


def test_the_random_encoder_stands_in_only_when_asked(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))

    def fall_back(values: dict[str, Any]) -> None:
        values["distillation"]["method"]["ede"].update(weights="mobile_sam", fall_back_to_random=True)

    told = prepared(world, tmp_path / "run", monkeypatch, fall_back).run.meta.provenance
    assert told["method"]["ede"]["weights"] == "random"
    assert told["notes"] == [pipelines.RANDOM_ENCODER_NOTE]


@pytest.mark.parametrize("ede", [{"enabled": False}, {"weight": 0.0}])
def test_mobilesam_is_built_only_when_it_is_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ede: dict[str, Any]
) -> None:
    fitted = prepared(
        world, tmp_path / "run", monkeypatch, lambda values: values["distillation"]["method"]["ede"].update(ede)
    )
    assert isinstance(fitted.knowledge, FrozenModels)
    assert fitted.knowledge.sam is None


def test_no_method_is_plain_training(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"] = {"name": "none"}

    fitted = prepared(world, tmp_path / "run", monkeypatch, change)
    assert isinstance(fitted.method, NoDistillation)
    assert fitted.knowledge is None, "no teacher is asked what nobody follows"
    assert fitted.method.parameter_groups(0.1) == []
    values = copy.deepcopy(world[1])
    change(values)
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", tmp_path / "run")
    ours, plain = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", world[0] / "student"))
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", ["arsd", "fkd"])
def test_a_method_without_weight_is_plain_training(name: str, world: World, tmp_path: Path) -> None:
    weights = {"arsd": ("feature", "head", "boxes"), "fkd": ("feature", "attention", "non_local")}[name]
    values = copy.deepcopy(world[1])
    values["distillation"]["method"] = {"name": name, **dict.fromkeys(weights, 0.0)}
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", tmp_path / "run")
    ours, plain = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", world[0] / "student"))
    assert set(ours) == set(plain)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_fgds_student_inherits_the_teachers_head(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        values["distillation"]["method"] = {"name": "fgd"}

    fitted = prepared(world, tmp_path / "run", monkeypatch, change)
    teacher, student = fitted.knowledge.teacher.state_dict(), fitted.detector.state_dict()
    assert all(torch.equal(student[name], teacher[name]) for name in student if name.startswith("head."))


def test_knowledge_is_kept_beside_the_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"flip": False, "quarter_turns": False}
        values["distillation"]["method"]["ede"]["cache"] = True
        values["distillation"]["cache_teacher"] = True

    values = copy.deepcopy(world[1])
    change(values)
    settings = parse(values, recipe.Recipe, source="values")
    pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", tmp_path / "distilled")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"teacher", "mobile_sam_native"}
    knowledge = prepared(world, tmp_path / "other", monkeypatch, change).knowledge
    assert len(knowledge._teacher_cache.store) == len(knowledge._sam_cache.store) == 8


def test_free_augmentation_cannot_be_kept(world: World, tmp_path: Path) -> None:
    values = copy.deepcopy(world[1])
    values["data"]["augmentation"] = {"scale_jitter": (0.8, 1.2)}
    values["distillation"]["cache_teacher"] = True
    settings = parse(values, recipe.Recipe, source="values")
    with pytest.raises(ConfigError, match=r"cannot be kept.*scale_jitter"):
        pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", tmp_path / "distilled")


def test_the_runs_of_a_seed_share_what_is_kept_of_free_augmentation(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(values: dict[str, Any]) -> None:
        values["data"]["augmentation"] = {"scale_jitter": (0.8, 1.2), "photometric": 0.2}
        values["distillation"] |= {"cache_teacher": True, "cache_scope": "seed"}

    def asked(method: str, folder: Path) -> list[int]:
        """Return how many tiles the teacher is asked about by a run."""
        values = copy.deepcopy(world[1])
        change(values)
        values["distillation"]["method"] = {"name": method}
        rows: list[int] = []
        taught = FrozenModels._teacher_maps
        monkeypatch.setattr(FrozenModels, "_teacher_maps", lambda self, x: rows.append(len(x)) or taught(self, x))
        settings = parse(values, recipe.Recipe, source="values")
        pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", folder)
        monkeypatch.setattr(FrozenModels, "_teacher_maps", taught)
        return rows

    blank = [1]  # what a store's shapes are taken from
    assert sum(asked("frs", tmp_path / "frs-1")) > 8
    assert asked("pkd", tmp_path / "pkd-1") == blank


def test_a_weak_teacher_is_refused_before_the_first_step(world: World, tmp_path: Path) -> None:
    values = copy.deepcopy(world[1])
    values["distillation"]["min_teacher_map"] = 0.9
    settings = parse(values, recipe.Recipe, source="values")
    with pytest.raises(TrainingError, match="too weak to teach"):
        pipelines.distill_student(settings, world[0] / "teacher" / "best.safetensors", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_restart_begins_anew(world: World, tmp_path: Path) -> None:
    settings = parse(world[1], recipe.Recipe, source="values")
    pipelines.train_role(settings, "student", tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    pipelines.train_role(settings, "student", tmp_path / "run", restart=True)
    assert not (tmp_path / "run" / "notes.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="holds files but no run"):
        pipelines.train_role(settings, "student", tmp_path / "other", restart=True)


def test_validation_finds_what_the_detector_finds(world: World) -> None:
    """A detector whose answers are the truth has an average precision of 1, whatever scale its images had."""
    settings = parse(world[1], recipe.Recipe, source="values")
    run = pipelines._run(settings, world[0] / "x", "student", settings.student.detector, settings.student.training, {})
    for scale in (1.0, 2.0):
        data = settings.data.model_copy(update={"scale": scale, "tile_px": 128})
        oracle = Oracle(run.validation_data, scale)
        metrics = validate(oracle, run.validation_data, data, settings.postprocess, per_level=10)
        assert metrics.mean_ap == pytest.approx(1.0)
        assert metrics.images == 4
        assert oracle.training


class Oracle(Detector):
    """Answers with a data set's own boxes, image after image."""

    def __init__(self, dataset: Any, scale: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.waiting = [
            (torch.from_numpy(image.boxes) * scale, torch.from_numpy(image.labels)) for image in dataset.images
        ]
        self.side = 64 * scale

    def forward(self, images: torch.Tensor) -> Any:
        assert images.shape[2:] == (self.side, self.side)
        assert not self.training
        return len(images)

    def anchors(self, output: Any) -> Any:
        raise NotImplementedError

    def assign_anchors(self, anchors: Any, target: Any) -> Any:
        raise NotImplementedError

    def task_losses(self, output: Any, targets: Any) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def candidate_groups(self, output: Any, **_: Any) -> Any:
        raise NotImplementedError

    def candidates(self, output: Any, **_: Any) -> Any:
        answers, self.waiting = self.waiting[:output], self.waiting[output:]
        boxes, labels = (torch.stack(part) for part in zip(*answers, strict=True))
        return boxes, torch.full(labels.shape, 0.9), labels
