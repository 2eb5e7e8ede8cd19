"""The screen's network: size, cells, context, targets and loss."""

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from ifkd.models import Targets
from ifkd.recipe import ScreenOptions
from ifkd.screen.network import CONTEXT_PX, STRIDE, Screen, cell_targets, focal_loss


def targets(*boxes: list[float], ignored: tuple[list[float], ...] = ()) -> Targets:
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels,
        torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4),
    )


@pytest.mark.parametrize("channels", [8, 64, 80])
def test_it_has_at_most_300_000_parameters_and_a_value_for_each_cell(channels: int) -> None:
    screen = Screen(ScreenOptions(channels=channels)).eval()
    assert sum(one.numel() for one in screen.parameters()) <= 300_000
    for rows, columns in ((1, 1), (3, 8)):
        assert screen(torch.zeros(2, 3, rows * STRIDE, columns * STRIDE)).shape == (2, 1, rows, columns)


def test_only_the_stated_context_affects_a_cell() -> None:
    torch.manual_seed(0)
    screen = Screen(ScreenOptions(channels=8)).eval()
    for module in screen.modules():  # so that no path is cut by a ReLU
        if isinstance(module, torch.nn.ReLU):
            module.forward = lambda value: value
    images = torch.zeros(1, 3, 25 * STRIDE, 25 * STRIDE, requires_grad=True)
    (gradient,) = torch.autograd.grad(screen(images)[0, 0, 12, 12], images)
    used = gradient[0].abs().sum(dim=0).nonzero()
    first, last = used.min().item(), used.max().item()
    assert max(12 * STRIDE - first, last - (13 * STRIDE - 1)) == CONTEXT_PX


def test_the_cells_of_an_object_share_its_weight() -> None:
    # The first object covers two cells; the second is smaller than half a cell, and its center is in one.
    objects, background = cell_targets(targets([8, 8, 24, 17], [37, 37, 40.5, 41]), (6, 6))
    expected = np.zeros((6, 6))
    expected[1, 1:3] = 0.5
    expected[4, 4] = 1.0
    assert objects.tolist() == expected.tolist()
    touched = np.zeros((6, 6))
    touched[1:3, 1:3] = 1
    touched[4:6, 4:6] = 1
    assert (1 - background).tolist() == touched.tolist()


def test_ignored_regions_are_neither_object_nor_background() -> None:
    objects, background = cell_targets(targets(ignored=([0, 0, 9, 8],)), (2, 3))
    assert objects.sum() == 0
    assert background.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_the_loss_is_the_focal_loss_of_torchvision() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 4, 5)
    objects = (torch.rand(2, 1, 4, 5) < 0.3).float()
    expected = sigmoid_focal_loss(logits, objects, alpha=-1, gamma=2.0, reduction="sum") / objects.sum()
    torch.testing.assert_close(focal_loss(logits, objects, 1 - objects), expected)


def test_a_batch_without_objects_has_a_finite_loss() -> None:
    screen = Screen(ScreenOptions(channels=8))
    loss = screen.task_losses(screen(torch.randn(2, 3, 32, 32)), [targets(), targets()])["objectness"]
    loss.backward()
    assert 0 < loss.item() < 1  # the initial objectness is low


def test_large_and_small_objects_have_the_same_weight() -> None:
    large, _ = cell_targets(targets([0, 0, 64, 64]), (10, 10))
    small, _ = cell_targets(targets([70, 70, 73, 73]), (10, 10))
    assert large.sum().item() == pytest.approx(small.sum().item()) == pytest.approx(1.0)
