"""`ifkd distill`: each error of the teacher's checkpoint is one clear message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ifkd.core.config import parse
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.recipe import DetectorOptions, Recipe

ExpectError = Callable[..., str]
WriteTeacher = Callable[..., Path]


@pytest.fixture
def write_teacher(tmp_path: Path, recipe_values: dict[str, Any]) -> WriteTeacher:
    """The function that writes an untrained teacher's checkpoint: (classes, options of the network, those that
    its checkpoint states differently) -> path."""

    def write(
        *,
        classes: tuple[str, ...] = ("barge", "ferry", "tug"),
        options: DetectorOptions | None = None,
        **stated: Any,
    ) -> Path:
        recipe = parse(recipe_values, Recipe, source="values")
        meta = CheckpointMeta(
            detector=recipe.teacher.detector.model_copy(update=stated),
            classes=classes,
            category_ids=tuple(range(len(classes))),
            recipe=recipe,
            provenance={},
        )
        detector = build_detector(options or recipe.teacher.detector, len(classes))
        save_checkpoint(tmp_path / "teacher.safetensors", detector, meta)
        return tmp_path / "teacher.safetensors"

    return write


def test_a_missing_teacher(expect_error: ExpectError, recipe_path: Path) -> None:
    assert "runs/tiny/teacher/best.safetensors" in expect_error("distill", str(recipe_path))


def test_a_checkpoint_of_another_network(
    expect_error: ExpectError, recipe_path: Path, write_teacher: WriteTeacher
) -> None:
    path = write_teacher(options=DetectorOptions(backbone="mobilenet_v2", channels=16))
    assert "resnet18 retinanet" in expect_error("distill", str(recipe_path), "--teacher", str(path))


def test_a_teacher_of_other_classes(expect_error: ExpectError, recipe_path: Path, write_teacher: WriteTeacher) -> None:
    path = write_teacher(classes=("cat", "dog"))
    message = expect_error("distill", str(recipe_path), "--teacher", str(path))
    assert "has other classes than the recipe's data: got ['cat', 'dog']" in message


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("anchor_scale", 2.0, "has another anchor_scale than the recipe's student: got 2.0, expected 4.0"),
        ("oriented", True, "differs in `oriented` from the recipe's student: got True, expected False"),
    ],
)
def test_a_teacher_of_other_anchors_or_boxes(
    expect_error: ExpectError, recipe_path: Path, write_teacher: WriteTeacher, option: str, value: Any, expected: str
) -> None:
    assert expected in expect_error("distill", str(recipe_path), "--teacher", str(write_teacher(**{option: value})))


def test_a_teacher_that_states_the_default_anchors(
    expect_error: ExpectError, recipe_path: Path, write_teacher: WriteTeacher
) -> None:
    path = write_teacher(anchor_scale=4.0)
    message = expect_error("distill", str(recipe_path), "--teacher", str(path), "distillation.min_teacher_map=0.3")
    assert "The teacher is too weak" in message


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_is_not_a_checkpoint(
    expect_error: ExpectError, recipe_path: Path, tmp_path: Path, damaged: bool
) -> None:
    path = tmp_path / "a.safetensors"
    if damaged:
        path.write_bytes(b"no weights")
    else:
        save_file({"a": torch.zeros(2)}, path)
    message = expect_error("distill", str(recipe_path), "--teacher", str(path))
    assert ("safetensors file" if damaged else "header") in message


def test_a_teacher_below_the_minimum_map(
    expect_error: ExpectError, recipe_path: Path, write_teacher: WriteTeacher
) -> None:
    command = ("distill", str(recipe_path), "--teacher", str(write_teacher()), "distillation.min_teacher_map=0.3")
    message = expect_error(*command)
    assert "The teacher is too weak for distillation: got validation mAP 0.0" in message
    assert "at least 0.3 (distillation.min_teacher_map)" in message


def test_mobilesam_is_not_installed(
    expect_error: ExpectError,
    recipe_path: Path,
    tmp_path: Path,
    write_teacher: WriteTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path / "cache"))
    command = ("distill", str(recipe_path), "--teacher", str(write_teacher()))
    message = expect_error(*command, "distillation.method.ede.weights=mobile_sam")
    assert f"{tmp_path}/cache/mobile_sam.pt" in message
    assert "Download https://" in message
