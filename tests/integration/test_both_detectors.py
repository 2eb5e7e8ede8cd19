"""Training and distillation of each combination of detector and student in the paper's tables, for a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from ifkd import recipe
from ifkd.core.config import parse
from ifkd.core.errors import CheckpointError
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.training.pipelines import distill_student, train_role

FAMILIES = ("retinanet", "faster_rcnn")


def settings(values: dict[str, Any], family: str, student: str = "resnet18") -> recipe.Recipe:
    """Return a recipe of a few steps; the pretrained weights of the teacher are beside the data."""
    values = json.loads(json.dumps(values))
    small = {"family": family, "channels": 16, "box_head_width": 24, "proposals": 30}
    values["teacher"]["detector"] = {**small, "backbone": "resnet18"}
    values["teacher"]["detector"]["backbone_weights"] = str(Path(values["data"]["root"]) / "resnet18.pth")
    values["student"]["detector"] = {**small, "backbone": student}
    values["distillation"]["method"]["head"] = {"frcnn_head": "both" if family == "faster_rcnn" else "rpn"}
    for part in (values["teacher"], values["student"], values["distillation"]):
        part["training"].update(epochs=1, batch_size=4)
    return parse(values, recipe.Recipe, source="values")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("both")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), folder / "resnet18.pth")
    return make_recipe(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, values: dict[str, Any]) -> tuple[str, Path]:
    """A family, and the folder of its teacher's run."""
    folder = Path(values["data"]["root"]) / "runs" / request.param / "teacher"
    train_role(settings(values, request.param), "teacher", folder)
    return request.param, folder


def first_losses(folder: Path) -> dict[str, Any]:
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        if "total" in entry:
            return entry
    raise AssertionError(f"{folder} logged no loss")


@pytest.mark.parametrize("student", ["resnet18", "mobilenet_v2"])
def test_a_student_learns_from_its_teacher(teacher: tuple[str, Path], values: dict[str, Any], student: str) -> None:
    family, folder = teacher
    out = folder.parent / student
    result = distill_student(settings(values, family, student), folder / "last.safetensors", out)
    assert result.iterations == 2
    losses = first_losses(out)
    task = {"rpn_objectness", "rpn_boxes", "classification", "boxes"} if family == "faster_rcnn" else None
    regions = {"method/regions"} if family == "faster_rcnn" else set()
    expected = {f"task/{name}" for name in task or {"classification", "boxes"}}
    assert expected | {"method/feature", "method/head"} | regions <= losses.keys()
    assert ("method/regions" in losses) == bool(regions)
    assert all(losses[name] > 0 for name in expected | regions)
    built = build_from(load_checkpoint(out / "last.safetensors"))
    assert (built.config.family, built.config.backbone) == (family, student)
    with torch.no_grad():
        output = built(torch.zeros(1, 3, 64, 64))
        boxes, scores, labels = built.candidates(output, size=(64, 64), per_level=20)
    assert boxes.isfinite().all()
    assert scores.shape == labels.shape


def test_provenance_has_the_pretrained_weights(teacher: tuple[str, Path]) -> None:
    (report,) = load_checkpoint(teacher[1] / "last.safetensors").meta.provenance["pretrained"]
    assert report["source"].endswith("resnet18.pth")
    assert len(report["sha256"]) == 64
    assert report["loaded"] > 90
    assert report["mismatched"] == report["missing"] == report["unexpected"] == []


def test_a_teacher_of_the_other_family_is_refused(teacher: tuple[str, Path], values: dict[str, Any]) -> None:
    family, folder = teacher
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(CheckpointError, match=f"is of another family .* got {family}, expected {other}"):
        distill_student(settings(values, other), folder / "last.safetensors", folder.parent / "refused")
    assert not (folder.parent / "refused" / "config.toml").exists()


def test_distillation_with_weights_of_zero_is_plain_training(teacher: tuple[str, Path], values: dict[str, Any]) -> None:
    """To the last bit and with the same parameter names, also with cached teacher outputs."""
    family, folder = teacher
    changed = json.loads(json.dumps(values))
    changed["distillation"]["method"].update(alpha=0.0, beta=0.0)
    changed["distillation"]["cache_teacher"] = True
    changed["data"]["augmentation"] = {"flip": True, "quarter_turns": True}
    recipe_ = settings(changed, family, "mobilenet_v2")
    train_role(recipe_, "student", folder.parent / "zero" / "plain")
    distill_student(recipe_, folder / "last.safetensors", folder.parent / "zero" / "distilled")
    assert (folder.parent / "zero" / "cache" / "teacher" / "index.bin").stat().st_size > 0
    plain, zero = (first_losses(folder.parent / "zero" / name) for name in ("plain", "distilled"))
    assert {name: zero[name] for name in plain if name.startswith("task/")} == {
        name: value for name, value in plain.items() if name.startswith("task/")
    }
    assert zero["raw/feature"] > 0
    weights = [load_file(folder.parent / "zero" / name / "last.safetensors") for name in ("plain", "distilled")]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
