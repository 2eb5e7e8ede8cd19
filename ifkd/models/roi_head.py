"""RoI head, the second stage of Faster R-CNN: class and refined box of each proposal."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.models.anchors import IGNORE, assign
from ifkd.models.detector import Targets

POS_IOU = 0.5
POSITIVE_FRACTION = 0.25
"""Largest fraction of positive RoIs among the sampled ones of an image."""
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Inverse of the deltas' deviations, 0.1 and 0.2."""
POOLED_LEVELS = 4
"""RoIs are pooled from P2 to P5; P6 is used by the RPN alone."""
POOLED_SIDE, SAMPLING_RATIO = 7, 2
"""Cells of a pooled RoI along a side, and samples of a cell along a side."""


@dataclass(frozen=True, slots=True, eq=False)
class RoiTargets:
    """Sampled RoIs of one image and their targets."""

    boxes: Float[Tensor, "rois 4"]
    labels: Int64[Tensor, " rois"]
    """0 is background, c + 1 is class c."""
    deltas: Float[Tensor, "rois 4"]
    """Deltas from the RoI to its object; 0 for background."""


class RoiHead(nn.Module):
    """RoIAlign on the level that matches a RoI's size, two fully connected layers, classes and boxes."""

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        names = [str(level) for level in range(POOLED_LEVELS)]
        self.box_roi_pool = MultiScaleRoIAlign(names, output_size=POOLED_SIDE, sampling_ratio=SAMPLING_RATIO)
        self.box_head = TwoMLPHead(config.channels * POOLED_SIDE**2, config.box_head_width)
        self.box_predictor = FastRCNNPredictor(config.box_head_width, num_classes + 1)
        classes, boxes = self.box_predictor.cls_score, self.box_predictor.bbox_pred
        nn.init.xavier_uniform_(self.box_head.fc6.weight)
        nn.init.xavier_uniform_(self.box_head.fc7.weight)
        # As in MMDetection: near-uniform class scores, and boxes equal to the proposals.
        nn.init.normal_(classes.weight, std=0.01)
        nn.init.normal_(boxes.weight, std=0.001)
        for layer in (self.box_head.fc6, self.box_head.fc7, classes, boxes):
            nn.init.zeros_(layer.bias)
        self._coder = BoxCoder(DELTA_WEIGHTS)
        self._sampler = BalancedPositiveNegativeSampler(config.sampled_rois, POSITIVE_FRACTION)

    def forward(
        self, pyramid: tuple[Tensor, ...], boxes: list[Float[Tensor, "_ 4"]], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "rois classes_and_background"], Float[Tensor, "rois classes_by_four"]]:
        """Return float32 class logits and class-wise deltas of the RoIs of all images of `size` (height, width).

        Pooling is in float32, the layers are in the pyramid's precision.
        """
        maps = OrderedDict((str(level), pyramid[level].float()) for level in range(POOLED_LEVELS))
        pooled = self.box_roi_pool(maps, boxes, [size] * len(boxes))
        precision = pyramid[0].dtype
        with torch.autocast(pooled.device.type, precision, enabled=precision != torch.float32):
            logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float()

    def sample(self, proposals: list[Float[Tensor, "_ 4"]], targets: list[Targets]) -> list[RoiTargets]:
        """Sample each image's RoIs from its proposals and ground-truth boxes, and return them with their targets."""
        candidates = [torch.cat([boxes, target.boxes]) for boxes, target in zip(proposals, targets, strict=True)]
        assignments = [
            assign(boxes, target.boxes, target.ignored, pos_iou=POS_IOU, neg_iou=POS_IOU)
            for boxes, target in zip(candidates, targets, strict=True)
        ]
        foreground, background = self._sampler([assigned.clamp(IGNORE, 0) + 1 for assigned in assignments])
        sampled = []
        for image, target in enumerate(targets):
            chosen = foreground[image].bool() | background[image].bool()
            boxes, assigned = candidates[image][chosen], assignments[image][chosen]
            positive = assigned >= 0
            labels = torch.zeros_like(assigned)
            labels[positive] = target.labels[assigned[positive]] + 1
            deltas = torch.zeros_like(boxes)
            deltas[positive] = self._coder.encode_single(target.boxes[assigned[positive]], boxes[positive])
            sampled.append(RoiTargets(boxes, labels, deltas))
        return sampled

    @staticmethod
    def losses(logits: Tensor, deltas: Tensor, targets: list[RoiTargets]) -> dict[str, Tensor]:
        """Return cross-entropy with background, and L1 on the deltas of each object's class, both by sampled RoI."""
        labels = torch.cat([target.labels for target in targets])
        target_deltas = torch.cat([target.deltas for target in targets])
        positive = torch.nonzero(labels > 0)[:, 0]
        predicted = deltas.reshape(len(labels), -1, 4)[positive, labels[positive]]
        normalizer = mean_over_ranks(logits.new_tensor(float(len(labels)))).clamp_min(1 / world_size())
        return {
            "classification": functional.cross_entropy(logits, labels, reduction="sum") / normalizer,
            "boxes": functional.l1_loss(predicted, target_deltas[positive], reduction="sum") / normalizer,
        }
