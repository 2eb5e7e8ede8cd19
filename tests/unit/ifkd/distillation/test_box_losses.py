"""Distances of boxes that teach the student's boxes."""

from typing import Any

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.box_losses import box_losses
from ifkd.distillation.methods import METHODS
from ifkd.distillation.methods.method import NetworkPair
from ifkd.models import Targets, build_detector
from ifkd.models.box_decoding import decode_boxes
from ifkd.models.oriented_deltas import gaussian_losses

ANCHORS = torch.tensor([[0.0, 0, 32, 32], [10, 20, 60, 45], [5, 5, 21, 41]])


@pytest.mark.parametrize("values", [4, 5])
def test_the_measure_is_that_of_the_boxes(values: int) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas, targets = (torch.randn(2, 3, values, generator=generator) for _ in range(2))
    found = box_losses(ANCHORS, deltas, targets)
    for image in range(2):
        pair = deltas[image], targets[image]
        upright = [decode_boxes(ANCHORS, one[:, :4], None) for one in pair]
        expected = generalized_box_iou_loss(*upright) if values == 4 else gaussian_losses(ANCHORS, *pair)
        torch.testing.assert_close(found[image], expected)
    assert box_losses(ANCHORS, targets, targets).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["crosskd", "arsd"])
def test_the_teachers_oriented_boxes_teach_the_students(name: str) -> None:
    torch.manual_seed(0)
    settings: Any = {"backbone": "resnet18", "channels": 16, "oriented": True, "head_init": "kaiming"}
    student, teacher = (build_detector(recipe.DetectorOptions(**settings), 2).eval() for _ in range(2))
    for layer in teacher.head.regression_head.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    pair = NetworkPair(16, 16, student.config.levels, (1.0,) * 5, detectors=(student, teacher))
    options = recipe.CrossKdOptions() if name == "crosskd" else recipe.ArsdOptions()
    method = METHODS[name](options, pair)
    turned = torch.tensor([[30.0, 30, 50, 14, 40]])
    target = Targets(torch.tensor([[6.0, 8, 54, 52]]), torch.tensor([1]), torch.zeros(0, 4), turned)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        of_teacher = teacher(pixels)
    batch = DistillationBatch(
        student=student(pixels), teacher=of_teacher, targets=[target], embedding=None, iteration=0
    )
    term = method.losses(batch)["boxes"]
    assert term.value.isfinite()
    if name == "crosskd":
        assert term.value > 0
