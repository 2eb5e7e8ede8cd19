"""Decoding of boxes against torchvision's."""

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from ifkd.models.box_decoding import concat_predictions, decode_boxes

WEIGHTS = ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoded_boxes_equal_torchvisions(weights: tuple[float, float, float, float]) -> None:
    source = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(50, 2, generator=source)
    boxes = torch.cat([corners, corners + 1 + 80 * torch.rand(50, 2, generator=source)], dim=1)
    deltas = torch.randn(50, 4, generator=source)
    expected = BoxCoder(weights).decode_single(deltas, boxes)
    torch.testing.assert_close(decode_boxes(boxes, deltas, None, weights=weights), expected)
    clipped = clip_boxes_to_image(expected, (96, 128))
    torch.testing.assert_close(decode_boxes(boxes, deltas, (96, 128), weights=weights), clipped)


def test_deltas_of_size_are_limited() -> None:
    box = decode_boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[0.0, 0.0, 99.0, -99.0]]), None)
    torch.testing.assert_close(box, torch.tensor([[4 - 250.0, 4 - 0.064, 4 + 250.0, 4 + 0.064]]))


def test_predictions_are_ordered_by_level_row_column_and_anchor() -> None:
    levels = tuple(torch.arange(1 * 6 * side * side).view(1, 6, side, side).float() for side in (2, 1))
    found = concat_predictions(levels, 3)
    assert found.shape == (1, 15, 2)
    assert found[0, :4, 0].tolist() == [0.0, 8.0, 16.0, 1.0]
    assert found[0, 12:].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
