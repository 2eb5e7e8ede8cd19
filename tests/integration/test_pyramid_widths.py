"""Teachers and students of different widths and of different detector families, with every method."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_fixtures import BASELINES, FAMILIES, options

from ifkd import recipe
from ifkd.core.config import parse
from ifkd.core.errors import CheckpointError, ConfigError
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods import NetworkPair, build_method
from ifkd.models import Targets, build_detector
from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.training.pipelines import distill_student

METHODS = (*BASELINES, "ifkd")
WITHOUT_ADAPTER = ("pkd", "crosskd")
WIDTHS = ((8, 24), (24, 8))
"""Channels of the student and of the teacher."""


def detector_values(family: recipe.Family, backbone: str, channels: int) -> dict[str, Any]:
    return {
        "family": family,
        "backbone": backbone,
        "channels": channels,
        "head_init": "kaiming",
        "box_head_width": 8,
        "proposals": 20,
        "sampled_rois": 16,
    }


def detector(family: recipe.Family, backbone: str, channels: int) -> recipe.DetectorOptions:
    return recipe.DetectorOptions.model_validate(detector_values(family, backbone, channels))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("student_width", "teacher_width"), WIDTHS)
@pytest.mark.parametrize("name", METHODS)
def test_a_pair_of_widths_is_adapted_or_refused_when_the_recipe_is_read(
    name: str, student_width: int, teacher_width: int, family: recipe.Family, make_recipe: Any, tmp_path: Path
) -> None:
    values = make_recipe(tmp_path)
    values["student"]["detector"] = detector_values(family, "mobilenet_v2", student_width)
    values["teacher"]["detector"] = detector_values(family, "resnet18", teacher_width)
    values["distillation"]["method"] = {"name": name}
    if name in WITHOUT_ADAPTER:
        with pytest.raises(ConfigError, match=r"requires (equal channels|retinanet)"):
            parse(values, recipe.Recipe, source="values")
        return
    settings = parse(values, recipe.Recipe, source="values")
    torch.manual_seed(0)
    student, teacher = (build_detector(role.detector, 2) for role in (settings.student, settings.teacher))
    networks = NetworkPair(
        student_width, teacher_width, recipe.LEVELS[family], (1.0,) * 5, detectors=(student, teacher)
    )
    built = build_method(options(name, **({"ede": {"enabled": False}} if name == "ifkd" else {})), networks)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        of_teacher = teacher.eval()(images)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    targets = [Targets(boxes, torch.zeros(1, dtype=torch.int64), torch.zeros(0, 4))] * 2
    terms = built.losses(DistillationBatch(student(images), of_teacher, None, targets, 10_000))
    total = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    total.backward()
    gradients = [part.grad for name, part in student.named_parameters() if ".fpn." in name and part.grad is not None]
    assert total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.fixture(scope="module")
def setup(
    tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """A folder with data and a teacher of twice the width that the recipe has, and the recipe's values."""
    folder = tmp_path_factory.mktemp("widths")
    values = make_recipe(folder)
    settings = parse(values, recipe.Recipe, source="values")
    wide = settings.teacher.detector.model_copy(update={"channels": 32})
    meta = CheckpointMeta(
        detector=wide,
        classes=("barge", "ferry", "tug"),
        category_ids=(3, 7, 9),
        recipe=settings,
        provenance={"role": "teacher"},
    )
    torch.manual_seed(1)
    save_checkpoint(folder / "teacher.safetensors", build_detector(wide, 3), meta)
    return folder, values


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_of_another_width_than_the_recipes_is_adapted_or_refused(
    name: str, setup: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    values = copy.deepcopy(setup[1])
    values["distillation"]["training"]["epochs"] = 1
    values["distillation"]["method"] = {"name": name, **({"ede": {"enabled": False}} if name == "ifkd" else {})}
    settings = parse(values, recipe.Recipe, source="values")
    if name in WITHOUT_ADAPTER:
        with pytest.raises(CheckpointError, match=r"has another width .*: got 32 channels, expected 16 channels"):
            distill_student(settings, setup[0] / "teacher.safetensors", tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    assert distill_student(settings, setup[0] / "teacher.safetensors", tmp_path / "run").iterations == 2


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("student", "teacher"), [FAMILIES, FAMILIES[::-1]])
def test_pyramids_of_different_levels_are_refused(
    name: str, student: str, teacher: str, make_recipe: Any, tmp_path: Path
) -> None:
    values = make_recipe(tmp_path)
    values["student"]["detector"]["family"], values["teacher"]["detector"]["family"] = student, teacher
    values["distillation"]["method"] = {"name": name}
    with pytest.raises(ConfigError, match="teacher and student must be of the same family"):
        parse(values, recipe.Recipe, source="values")
