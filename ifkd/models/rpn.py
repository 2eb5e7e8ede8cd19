"""Region proposal network (RPN), the first stage of Faster R-CNN."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from ifkd.compute.distributed import mean_over_ranks
from ifkd.models.anchor_assignment import IGNORE
from ifkd.models.anchors import ASPECT_RATIOS, RPN_SCALES
from ifkd.models.box_coder import concat_predictions, decode_boxes, flatten_predictions
from ifkd.models.detector import DetectorOutput, Targets, init_towers

ANCHORS_PER_CELL = len(RPN_SCALES) * len(ASPECT_RATIOS)
BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION = 256, 0.5
"""Sampled anchors of an image, and the largest fraction of positive ones among them."""
NMS_IOU = 0.7
MIN_SIZE = 1e-3
"""Proposals with a shorter side, pixels, are removed."""


class RegionProposalNetwork(nn.Module):
    """RPN with three anchors a cell."""

    def __init__(self, channels: int, head_init: Literal["normal", "kaiming"] = "normal") -> None:
        super().__init__()
        self.head = RPNHead(channels, ANCHORS_PER_CELL)
        if head_init == "kaiming":
            init_towers(self.head.conv)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self._sampler = BalancedPositiveNegativeSampler(BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION)

    def losses(
        self,
        anchors: Float[Tensor, "anchors 4"],
        output: DetectorOutput,
        targets: list[Targets],
        assignments: list[Int64[Tensor, " anchors"]],
    ) -> dict[str, Tensor]:
        """Return cross-entropy of objectness and L1 on deltas, divided by the number of sampled anchors."""
        scores = concat_predictions(output.logits, ANCHORS_PER_CELL)[:, :, 0]
        boxes = concat_predictions(output.deltas, ANCHORS_PER_CELL)
        # The sampler expects 1 for an object, 0 for background and -1 for ignored anchors.
        foreground, background = self._sampler([assigned.clamp(IGNORE, 0) + 1 for assigned in assignments])
        objectness, regression = scores.new_zeros(()), scores.new_zeros(())
        count = scores.new_zeros(())
        for image, (target, assigned) in enumerate(zip(targets, assignments, strict=True)):
            positive = foreground[image].bool()
            sampled = positive | background[image].bool()
            objectness = objectness + functional.binary_cross_entropy_with_logits(
                scores[image][sampled], positive[sampled].float(), reduction="sum"
            )
            target_deltas = self._coder.encode_single(target.boxes[assigned[positive]], anchors[positive])
            regression = regression + functional.l1_loss(boxes[image][positive], target_deltas, reduction="sum")
            count += sampled.sum()
        normalizer = mean_over_ranks(count).clamp_min(1.0)
        return {"rpn_objectness": objectness / normalizer, "rpn_boxes": regression / normalizer}


@torch.no_grad()
def generate_proposals(
    anchors: list[Float[Tensor, "_ 4"]],
    output: DetectorOutput,
    *,
    size: tuple[int, int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
) -> list[Float[Tensor, "_ 4"]]:
    """Return each image's proposals, best first, without gradient.

    Args:
        anchors: By level.
        output: Output of the detector.
        size: (height, width) of the images, to which proposals are clipped.
        pre_nms_top_n: Anchors of each level before NMS.
        post_nms_top_n: Proposals of an image after NMS, at most.
    """
    boxes, scores, levels = [], [], []
    for level, (level_anchors, level_logits, level_deltas) in enumerate(
        zip(anchors, output.logits, output.deltas, strict=True)
    ):
        objectness = flatten_predictions(level_logits, ANCHORS_PER_CELL)[:, :, 0].float()
        best, index = objectness.topk(min(pre_nms_top_n, objectness.shape[1]), dim=1)
        all_deltas = flatten_predictions(level_deltas, ANCHORS_PER_CELL).float()
        best_deltas = all_deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
        boxes.append(decode_boxes(level_anchors[index], best_deltas, size))
        scores.append(best.sigmoid())
        levels.append(torch.full_like(index, level))
    return [
        _filter_proposals(*image, post_nms_top_n)
        for image in zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels, dim=1), strict=True)
    ]


def _filter_proposals(boxes: Tensor, scores: Tensor, levels: Tensor, post_nms_top_n: int) -> Float[Tensor, "_ 4"]:
    """Remove small boxes of one image, apply NMS to each level, and return the best boxes."""
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIZE).all(dim=1)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    return boxes[batched_nms(boxes, scores, levels, NMS_IOU)[:post_nms_top_n]]
