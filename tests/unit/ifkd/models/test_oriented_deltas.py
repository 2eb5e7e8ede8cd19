"""Oriented boxes as deltas: round trip, symmetries, the upright case, and the divergence against torch's."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torchvision.models.detection._utils import BoxCoder

from ifkd.core.oriented_boxes import canonical, corner_distances, envelopes
from ifkd.models.box_decoding import decode_boxes
from ifkd.models.oriented_deltas import decode_oriented, encode_oriented, gaussian_divergence, gaussian_losses

RNG = np.random.default_rng(3)


def some(count: int = 300) -> Tensor:
    values = [RNG.uniform(50, 450, (count, 2)), RNG.uniform(4, 90, (count, 2)), RNG.uniform(0, 180, (count, 1))]
    return torch.from_numpy(canonical(np.concatenate(values, axis=1)))


def anchors(count: int = 300) -> Tensor:
    corner, extent = RNG.uniform(0, 400, (count, 2)), RNG.uniform(16, 90, (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + extent], axis=1).astype(np.float32))


def divergence(boxes: Tensor, targets: Tensor, around: Tensor | None = None) -> Tensor:
    around = anchors(len(boxes)) if around is None else around
    return gaussian_divergence(around, encode_oriented(boxes, around), encode_oriented(targets, around))


def gaussian(boxes: Tensor) -> MultivariateNormal:
    boxes = boxes.double()
    angle = torch.deg2rad(boxes[:, 4])
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    spread = torch.diag_embed((boxes[:, 2:4] / 2).square())
    return MultivariateNormal(boxes[:, :2], turn @ spread @ turn.mT)


def turned(boxes: Tensor) -> Tensor:
    """Return boxes after a quarter turn of the plane, (x, y) -> (-y, x)."""
    x, y, length, width, angle = boxes.T
    return torch.stack([-y, x, length, width, (angle + 90) % 180], dim=1)


def test_deltas_return_to_their_boxes_and_envelopes() -> None:
    boxes, around = some(), anchors()
    found, oriented = decode_oriented(around, encode_oriented(boxes, around), None)
    assert corner_distances(oriented.numpy(), boxes.numpy()).max() < 0.02
    np.testing.assert_allclose(found, envelopes(oriented.numpy()), atol=1e-2)
    assert (oriented[:, 2] >= oriented[:, 3]).all()
    assert ((oriented[:, 4] >= 0) & (oriented[:, 4] < 180)).all()


@pytest.mark.parametrize("angle", [0.0, 1e-4, 44.99, 45.0, 89.999, 90.0, 90.001, 135.0, 179.9999])
def test_deltas_do_not_jump_at_any_angle(angle: float) -> None:
    boxes, around = torch.tensor([[100, 100, 60, 8, angle], [100, 100, 60, 8, angle + 1e-3]]), anchors(1).expand(2, 4)
    deltas = encode_oriented(boxes, around)
    assert (deltas[0] - deltas[1]).abs().max() < 1e-4
    _, oriented = decode_oriented(around, deltas, None)
    assert corner_distances(oriented.numpy(), boxes.numpy()).max() < 0.02


def test_the_deltas_of_a_square_do_not_depend_on_its_angle() -> None:
    squares = torch.tensor([[9.0, 9, 20, 20, angle] for angle in (0, 17, 45, 80)])
    deltas = encode_oriented(squares, anchors(1).expand(4, 4))
    torch.testing.assert_close(deltas, deltas[:1].expand_as(deltas))


def test_an_upright_box_has_the_deltas_of_an_upright_detector() -> None:
    boxes, around = some(), anchors()
    boxes[:, 4] = torch.from_numpy(RNG.choice([0.0, 90.0], len(boxes)))
    deltas = encode_oriented(boxes, around)
    upright = torch.from_numpy(envelopes(boxes.numpy()))
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(upright, around)
    torch.testing.assert_close(deltas, torch.nn.functional.pad(expected, (0, 1)), atol=1e-5, rtol=1e-4)
    found, _ = decode_oriented(around, torch.nn.functional.pad(expected, (0, 1)), (300, 400))
    torch.testing.assert_close(found, decode_boxes(around, expected, (300, 400)), atol=1e-3, rtol=1e-5)


def test_a_quarter_turn_of_the_image_turns_the_boxes() -> None:
    boxes, around = some(), anchors()
    x1, y1, x2, y2 = around.T
    deltas = encode_oriented(turned(boxes), torch.stack([-y2, x1, -y1, x2], dim=1))
    dx, dy, dw, dh, turn = encode_oriented(boxes, around).T
    torch.testing.assert_close(deltas, torch.stack([-dy, dx, dh, dw, -turn], dim=1), atol=1e-5, rtol=1e-4)


def test_swapped_sides_are_the_same_box() -> None:
    boxes, around = some(), anchors()
    swapped = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0.0, 0, 0, 0, 90])
    torch.testing.assert_close(encode_oriented(swapped, around), encode_oriented(boxes, around), atol=1e-5, rtol=1e-4)


def test_the_divergence_is_that_of_torchs_normal_distributions() -> None:
    boxes = some()
    near = boxes + torch.from_numpy(RNG.normal(0, 2, boxes.shape)).float()
    near[:, 2:4] = near[:, 2:4].clamp_min(2.0)
    for one, other in ((boxes, near), (near, boxes), (boxes, some())):
        expected = kl_divergence(gaussian(one), gaussian(other)).float()
        torch.testing.assert_close(divergence(one, other), expected, rtol=2e-3, atol=1e-4)


def test_equal_boxes_have_no_divergence_and_no_direction_counts_for_squares() -> None:
    boxes = some()
    assert divergence(boxes, boxes).max() == 0
    squares = torch.tensor([[9.0, 9, 20, 20, angle] for angle in (0, 17, 45, 80)])
    assert divergence(squares, squares[[2, 3, 0, 1]], anchors(1).expand(4, 4)).max() < 1e-9


@pytest.mark.parametrize("far", [1.0, 30.0, 1e4])
def test_losses_and_gradients_are_finite_for_any_prediction(far: float) -> None:
    around = anchors()
    deltas = (far * torch.from_numpy(RNG.normal(size=(300, 5))).float()).requires_grad_()
    targets = some()
    targets[:50, 3] = 0.0
    targets[50:99, 3] = targets[50:99, 2]
    with torch.autocast("cpu", torch.bfloat16):
        losses = gaussian_losses(around, deltas, encode_oriented(targets, around))
    assert losses.dtype == torch.float32
    assert ((losses >= 0) & (losses < 1 + 1e-6)).all()
    losses.sum().backward()
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()


def test_no_deltas_give_the_anchors_and_have_finite_gradients() -> None:
    around, deltas = anchors(), torch.zeros((300, 5), requires_grad=True)
    found, _ = decode_oriented(around, deltas, None)
    torch.testing.assert_close(found, around, atol=1e-3, rtol=1e-4)
    gaussian_losses(around, deltas, encode_oriented(some(), around)).sum().backward()
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()
