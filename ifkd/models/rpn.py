"""Faster R-CNN's first stage: three anchors a cell, object or not, and the boxes worth a second look."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from ifkd.compute.distributed import mean_over_ranks
from ifkd.models.anchor_assignment import UNDECIDED, assign, decode, flatten_predictions
from ifkd.models.anchors import RATIOS, REGION_SCALES
from ifkd.models.detector import Targets, init_towers

PER_CELL = len(REGION_SCALES) * len(RATIOS)
"""Anchors of a cell."""
POSITIVE_IOU, NEGATIVE_IOU, LEAST_CLAIM = 0.7, 0.3, 0.3
SAMPLED_ANCHORS, POSITIVE_SHARE = 256, 0.5
"""Anchors of an image that the loss counts, and the largest share of objects among them."""
NMS_IOU = 0.7
SMALLEST_SIDE = 1e-3
"""A proposal with a shorter side, pixels, is dropped."""


class RegionProposals(nn.Module):
    """The region proposal network."""

    def __init__(self, channels: int, head_init: Literal["normal", "kaiming"] = "normal") -> None:
        super().__init__()
        self.head = RPNHead(channels, PER_CELL)
        if head_init == "kaiming":
            init_towers(self.head.conv)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._sampler = BalancedPositiveNegativeSampler(SAMPLED_ANCHORS, POSITIVE_SHARE)

    def matches(self, anchors: Float[Tensor, "anchors 4"], target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the row of the object that each anchor learns from, or a code of `boxes.assign`."""
        return assign(anchors, target, positive=POSITIVE_IOU, negative=NEGATIVE_IOU, least_claim=LEAST_CLAIM)

    def losses(
        self,
        anchors: list[Float[Tensor, "_ 4"]],
        logits: tuple[Tensor, ...],
        deltas: tuple[Tensor, ...],
        targets: list[Targets],
    ) -> dict[str, Tensor]:
        """Return cross-entropy of objectness and L1 on deltas, both over the number of sampled anchors of the batch."""
        every_anchor = torch.cat(anchors)
        scores = torch.cat([flatten_predictions(level, PER_CELL) for level in logits], dim=1).float()[:, :, 0]
        boxes = torch.cat([flatten_predictions(level, PER_CELL) for level in deltas], dim=1).float()
        matches = [self.matches(every_anchor, target) for target in targets]
        # The sampler takes 1 for an object, 0 for background, and leaves -1 alone.
        objects, background = self._sampler([matched.clamp(UNDECIDED, 0) + 1 for matched in matches])
        objectness, regression = scores.new_zeros(()), scores.new_zeros(())
        count = scores.new_zeros(())
        for image, (target, matched) in enumerate(zip(targets, matches, strict=True)):
            positive = objects[image].bool()
            sampled = positive | background[image].bool()
            objectness = objectness + functional.binary_cross_entropy_with_logits(
                scores[image][sampled], positive[sampled].float(), reduction="sum"
            )
            wanted = self._coder.encode_single(target.boxes[matched[positive]], every_anchor[positive])
            regression = regression + functional.l1_loss(boxes[image][positive], wanted, reduction="sum")
            count += sampled.sum()
        normalizer = mean_over_ranks(count).clamp_min(1.0)
        return {"rpn_objectness": objectness / normalizer, "rpn_boxes": regression / normalizer}


@torch.no_grad()
def propose(
    anchors: list[Float[Tensor, "_ 4"]],
    logits: tuple[Tensor, ...],
    deltas: tuple[Tensor, ...],
    *,
    size: tuple[int, int],
    before_nms: int,
    kept: int,
) -> list[Float[Tensor, "_ 4"]]:
    """Return each image's proposals, best first and without gradient.

    Args:
        anchors: By level.
        logits: Objectness, by level.
        deltas: Box regression, by level.
        size: The images' (height, width), which proposals are cut to.
        before_nms: Anchors taken from each level before suppression.
        kept: The most proposals of an image.
    """
    boxes, scores, levels = [], [], []
    for level, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas, strict=True)):
        objectness = flatten_predictions(level_logits, PER_CELL)[:, :, 0].float()
        best, index = objectness.topk(min(before_nms, objectness.shape[1]), dim=1)
        chosen = flatten_predictions(level_deltas, PER_CELL).float().gather(1, index[:, :, None].expand(-1, -1, 4))
        boxes.append(decode(level_anchors[index], chosen, size))
        scores.append(best.sigmoid())
        levels.append(torch.full_like(index, level))
    return [
        _best_apart(*image, kept)
        for image in zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels, dim=1), strict=True)
    ]


def _best_apart(boxes: Tensor, scores: Tensor, levels: Tensor, kept: int) -> Float[Tensor, "_ 4"]:
    """Return the best boxes of one image that do not overlap a better one of their level too much."""
    large = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE).all(dim=1)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    return boxes[batched_nms(boxes, scores, levels, NMS_IOU)[:kept]]
