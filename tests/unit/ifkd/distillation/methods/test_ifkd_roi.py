"""Distillation of the second stage of Faster R-CNN in IFKD."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from ifkd import recipe
from ifkd.distillation import CacheSpec, DistillationBatch, FrozenModels
from ifkd.distillation.methods import Method, NetworkPair, build_method
from ifkd.distillation.methods.ifkd import roi_divergence
from ifkd.models import FasterRcnn, Targets, build_detector, normalize

CLASSES = 3


def detector(seed: int, *, channels: int = 16, backbone: str = "resnet18") -> FasterRcnn:
    settings: dict[str, Any] = {"family": "faster_rcnn", "backbone": backbone, "channels": channels}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build_detector(recipe.DetectorOptions(**settings, box_head_width=24, proposals=30), CLASSES)
        assert isinstance(built, FasterRcnn)
        torch.nn.init.normal_(built.roi_heads.box_predictor.cls_score.weight)
    return built.eval()


def make_batch(student: FasterRcnn, teacher: FasterRcnn, iteration: int = 500) -> DistillationBatch:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    boxes, labels = torch.tensor([[4.0, 6, 40, 34]]), torch.tensor([1])
    targets = [Targets(boxes, labels, torch.zeros(0, 4)), Targets(boxes[:0], labels[:0], torch.zeros(0, 4))]
    output = student(images)
    student.task_losses(output, targets)
    with torch.no_grad():
        return DistillationBatch(output, teacher(images), None, targets, iteration)


def method(teacher: FasterRcnn, channels: int, **head: Any) -> Method:
    config = recipe.IfkdOptions.model_validate({"ede": {"enabled": False}, "warmup_iters": 1000, "head": head})
    networks = NetworkPair(channels, 16, recipe.LEVELS["faster_rcnn"], (1.0,) * 5, second_stage=teacher.classify)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_method(config, networks).eval()


def test_the_divergence_equals_torchs_for_categorical_distributions() -> None:
    student, teacher = detector(0, channels=8, backbone="mobilenet_v2"), detector(1)
    batch = make_batch(student, teacher)
    (sampled,) = batch.student.sampled
    with torch.no_grad():
        expected = teacher.classify(batch.teacher, sampled.boxes)
    slow = kl_divergence(Categorical(logits=expected), Categorical(logits=sampled.class_logits)).mean()
    found = roi_divergence(sampled, batch.teacher, teacher.classify)
    assert slow.item() > 0.01
    assert found.item() == pytest.approx(slow.item(), rel=1e-5)


def test_the_divergence_of_equal_networks_is_zero() -> None:
    teacher = detector(1)
    batch = make_batch(teacher, teacher)
    found = roi_divergence(batch.student.sampled[0], batch.teacher, teacher.classify)
    assert abs(found.item()) < 1e-6


@pytest.mark.parametrize(
    ("choice", "dense", "regions"), [("rpn", True, False), ("roi", False, True), ("both", True, True)]
)
def test_the_option_chooses_the_distilled_heads(choice: str, dense: bool, regions: bool) -> None:
    student, teacher = detector(0, channels=8, backbone="mobilenet_v2"), detector(1)
    batch = make_batch(student, teacher)
    terms = method(teacher, 8, frcnn_head=choice).losses(batch)
    assert ("regions" in terms) == regions
    assert (terms["head"].value.item() > 0) == dense
    if regions:
        assert terms["regions"].weight == pytest.approx(0.25)  # beta 0.5, half way through the warm-up
        expected = roi_divergence(batch.student.sampled[0], batch.teacher, teacher.classify)
        torch.testing.assert_close(terms["regions"].value, expected)
    assert set(method(teacher, 8, frcnn_head=choice, enabled=False).losses(batch)) == {"feature", "head"}


def test_only_the_students_second_stage_has_gradients() -> None:
    student, teacher = detector(0, channels=8, backbone="mobilenet_v2"), detector(1)
    batch = make_batch(student, teacher)
    built = method(teacher, 8, frcnn_head="roi")
    built.losses(batch)["regions"].value.backward()
    assert student.roi_heads.box_head.fc6.weight.grad is not None
    assert student.backbone.fpn.layer_blocks[0][0].weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not [name for name in built.state_dict() if "teacher" in name or "stage" in name]


def test_the_divergence_from_cached_teacher_outputs(tmp_path: Path) -> None:
    """The teacher's pyramid is cached in float16; its second stage runs on it."""
    student, teacher = detector(0, channels=8, backbone="mobilenet_v2"), detector(1)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    cache_spec = CacheSpec(tmp_path, tile_px=64, max_tiles=2, depends_on={"images": "two"})
    batch, images = make_batch(student, teacher), normalize(pixels)
    uncached, first, later = (
        FrozenModels(teacher, None, cache_spec=cache_spec if cached else None, cache_teacher=cached)
        for cached in (False, True, True)
    )
    outputs = [frozen(images, pixels).teacher for frozen in (uncached, first, later)]
    exact, *found = (roi_divergence(batch.student.sampled[0], output, teacher.classify).item() for output in outputs)
    assert exact > 0.01
    assert found == pytest.approx([exact, exact], rel=2e-3)
