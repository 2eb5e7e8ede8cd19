"""Assignment of anchors to objects, background and ignored regions."""

from collections.abc import Sequence

import pytest
import torch
from torchvision.ops import box_iou

from ifkd.models import Targets
from ifkd.models.anchors import BACKGROUND, IGNORE, assign


def target(boxes: Sequence[Sequence[float]], labels: Sequence[int], ignored: Sequence[Sequence[float]] = ()) -> Targets:
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
    )


def test_an_object_is_assigned_its_best_anchors_from_min_pos_iou_on() -> None:
    anchors = torch.tensor([[0.0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]])
    one = target([[0, 0, 30, 32], [0, 0, 20, 32], [34, 32, 38, 36]], [0, 0, 0])
    overlaps = box_iou(one.boxes, anchors)
    assert overlaps.amax(dim=1).tolist() == pytest.approx([30 / 32, 20 / 32, 16 / 1024])
    assert assign(anchors, one.boxes, one.ignored, pos_iou=0.7, neg_iou=0.3).tolist() == [0, -1, -1, -1]
    assert assign(anchors, one.boxes, one.ignored, pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.3).tolist() == [
        1,
        -1,
        -1,
        -1,
    ]
    assert assign(anchors, one.boxes, one.ignored, pos_iou=0.7, neg_iou=0.3, min_pos_iou=0.0).tolist() == [1, -1, -1, 2]


def test_an_object_without_overlap_is_assigned_no_anchor() -> None:
    anchors = torch.tensor([[0.0, 0, 32, 32], [32, 0, 64, 32]])
    outside = target([[100, 100, 120, 120]], [0])
    assert (
        assign(anchors, outside.boxes, outside.ignored, pos_iou=0.5, neg_iou=0.4, min_pos_iou=0.0).tolist()
        == [BACKGROUND] * 2
    )


def test_anchors_between_the_thresholds_and_in_ignored_regions_are_ignored() -> None:
    anchors = torch.tensor([[0.0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 96, 32]])
    one = target([[0, 0, 16, 32], [0, 0, 32, 32]], [0, 0], [[60, 0, 96, 32]])
    alone = target([[0, 0, 16, 32]], [0], [[60, 0, 96, 32]])
    assert assign(anchors, alone.boxes, alone.ignored, pos_iou=0.7, neg_iou=0.3).tolist() == [
        IGNORE,
        BACKGROUND,
        IGNORE,
    ]
    # An ignored region changes only background anchors.
    covered = target([[0, 0, 32, 32]], [0], [[0, 0, 96, 32]])
    assert assign(anchors, covered.boxes, covered.ignored, pos_iou=0.7, neg_iou=0.3).tolist() == [0, IGNORE, IGNORE]
    assert assign(anchors, one.boxes, one.ignored, pos_iou=0.7, neg_iou=0.3).tolist() == [1, BACKGROUND, IGNORE]
    assert assign(anchors[:0], one.boxes, one.ignored, pos_iou=0.7, neg_iou=0.3).tolist() == []
