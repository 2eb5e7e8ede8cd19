"""Distances of predicted boxes, by the measure that trains them: GIoU of upright boxes, Gaussians of oriented ones."""

from jaxtyping import Float
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ifkd.models.box_decoding import decode_boxes
from ifkd.models.oriented_deltas import gaussian_losses


def box_losses(
    anchors: Float[Tensor, "anchors 4"], deltas: Float[Tensor, "*batch anchors values"], targets: Tensor
) -> Float[Tensor, "*batch anchors"]:
    """Return the loss of each box toward its target, both as deltas: four of upright boxes, five of oriented ones."""
    anchors = anchors.expand(*deltas.shape[:-1], 4)
    if deltas.shape[-1] == 5:
        return gaussian_losses(anchors, deltas, targets)
    return generalized_box_iou_loss(*(decode_boxes(anchors, values, None) for values in (deltas, targets)))
