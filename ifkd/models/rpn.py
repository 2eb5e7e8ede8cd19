"""Region proposal network (RPN), the first stage of Faster R-CNN."""

from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.rpn import RPNHead

from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.models.anchors import ASPECT_RATIOS, IGNORE
from ifkd.models.box_decoding import concat_predictions
from ifkd.models.detector import DetectorOutput, Targets, init_towers

ANCHORS_PER_CELL = len(ASPECT_RATIOS)
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
        objectness, regression, count = (scores.new_zeros(()) for _ in range(3))
        for image, (target, assigned) in enumerate(zip(targets, assignments, strict=True)):
            positive = foreground[image].bool()
            sampled = positive | background[image].bool()
            objectness = objectness + functional.binary_cross_entropy_with_logits(
                scores[image][sampled], positive[sampled].float(), reduction="sum"
            )
            target_deltas = self._coder.encode_single(target.boxes[assigned[positive]], anchors[positive])
            regression = regression + functional.l1_loss(boxes[image][positive], target_deltas, reduction="sum")
            count += sampled.sum()
        normalizer = mean_over_ranks(count).clamp_min(1 / world_size())
        return {"rpn_objectness": objectness / normalizer, "rpn_boxes": regression / normalizer}
