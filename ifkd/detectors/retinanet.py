"""RetinaNet (Lin et al. 2017) with mmdet's assignment and losses, which the paper's numbers come from."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, sigmoid_focal_loss

from ifkd import recipe
from ifkd.detectors import anchors
from ifkd.detectors.detector import Detector, DetectorOutput, Targets
from ifkd.detectors.pyramid import RetinaNetPyramid

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
IGNORED_SHARE = 0.5
"""An anchor with more than this share of its area in an ignored region teaches nothing."""
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
MAX_LOG_RATIO = abs(math.log(16 / 1000))
"""Largest |dw| and |dh| in decoding."""


class RetinaNet(Detector):
    """One-stage detector on P3 to P7 with nine anchors a cell."""

    def __init__(self, config: recipe.Detector, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.strides = RetinaNetPyramid.strides
        self.backbone = RetinaNetPyramid(config)
        self.head = RetinaNetHead(config.channels, anchors.PER_CELL, num_classes)
        if config.head_init == "kaiming":
            _init_towers(self.head)
        self._matcher = Matcher(POSITIVE_IOU, NEGATIVE_IOU, allow_low_quality_matches=True)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0), bbox_xform_clip=MAX_LOG_RATIO)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> DetectorOutput:
        """Return P3 to P7, class logits and box deltas."""
        pyramid = self.backbone(images)
        classes, boxes = self.head.classification_head, self.head.regression_head
        return DetectorOutput(
            pyramid=pyramid,
            logits=tuple(classes.cls_logits(classes.conv(level)) for level in pyramid),
            deltas=tuple(boxes.bbox_reg(boxes.conv(level)) for level in pyramid),
        )

    def anchors(self, output: DetectorOutput) -> list[Float[Tensor, "_ 4"]]:
        """Return the anchors of each level of a forward."""
        return [
            anchors.anchors_of_level(stride, (logits.shape[2], logits.shape[3]), logits.device)
            for stride, logits in zip(self.strides, output.logits, strict=True)
        ]

    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return focal loss and L1 on deltas, both over the number of positive anchors of the batch (at least 1)."""
        every_anchor = torch.cat(self.anchors(output))
        logits = torch.cat([self._by_anchor(level, self.num_classes) for level in output.logits], dim=1).float()
        deltas = torch.cat([self._by_anchor(level, 4) for level in output.deltas], dim=1).float()
        classification = logits.new_zeros(())
        regression = logits.new_zeros(())
        positives = 0
        for image, target in enumerate(targets):
            matched = self._match(every_anchor, target)
            positive, counted = matched >= 0, matched != Matcher.BETWEEN_THRESHOLDS
            wanted = torch.zeros_like(logits[image])
            wanted[positive, target.labels[matched[positive]]] = 1.0
            classification = classification + sigmoid_focal_loss(
                logits[image][counted], wanted[counted], alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"
            )
            wanted_deltas = self._coder.encode_single(target.boxes[matched[positive]], every_anchor[positive])
            regression = regression + functional.l1_loss(deltas[image][positive], wanted_deltas, reduction="sum")
            positives += int(positive.sum())
        return {"classification": classification / max(1, positives), "boxes": regression / max(1, positives)}

    def candidates(
        self, output: DetectorOutput, *, size: tuple[int, int], per_level: int
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return the best anchor-class pairs of each level, decoded and cut to `size`."""
        boxes, scores, labels = [], [], []
        for level_anchors, level_logits, level_deltas in zip(
            self.anchors(output), output.logits, output.deltas, strict=True
        ):
            logits = self._by_anchor(level_logits, self.num_classes).flatten(1)
            deltas = self._by_anchor(level_deltas, 4)
            best, pair = logits.topk(min(per_level, logits.shape[1]), dim=1)
            anchor = pair // self.num_classes
            chosen_deltas = deltas.gather(1, anchor[:, :, None].expand(-1, -1, 4))
            boxes.append(_decode(level_anchors[anchor], chosen_deltas.float(), size))
            scores.append(best.float().sigmoid())
            labels.append(pair - anchor * self.num_classes)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1)

    def _match(self, every_anchor: Tensor, target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the object of each anchor, or one of Matcher's two negative codes."""
        if len(target.boxes):
            matched: Tensor = self._matcher(box_iou(target.boxes, every_anchor))
        else:
            matched = torch.full((len(every_anchor),), Matcher.BELOW_LOW_THRESHOLD, device=every_anchor.device)
        if len(target.ignored):
            share = _intersection_over_first(every_anchor, target.ignored).amax(dim=1)
            hidden = (share > IGNORED_SHARE) & (matched == Matcher.BELOW_LOW_THRESHOLD)
            matched = matched.masked_fill(hidden, Matcher.BETWEEN_THRESHOLDS)
        return matched

    @staticmethod
    def _by_anchor(level: Tensor, values: int) -> Tensor:
        """Return [batch, anchors·values, h, w] as [batch, h·w·anchors, values]."""
        batch, _, height, width = level.shape
        split = level.view(batch, anchors.PER_CELL, values, height, width)
        return split.permute(0, 3, 4, 1, 2).reshape(batch, height * width * anchors.PER_CELL, values)


def _init_towers(head: RetinaNetHead) -> None:
    """Give the convolutions before a ReLU weights that keep the signal's size (He et al. 2015)."""
    for tower in (head.classification_head.conv, head.regression_head.conv):
        for module in tower.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _decode(boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
    """Return anchors [..., 4] moved and stretched by `deltas` [..., 4] (R-CNN's parametrisation), cut to `size`."""
    extent = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * extent + deltas[..., :2] * extent
    half = 0.5 * extent * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    limit = boxes.new_tensor([size[1], size[0]])
    zero = torch.zeros_like(limit)
    return torch.cat([(centre - half).clamp(zero, limit), (centre + half).clamp(zero, limit)], dim=-1)


def _intersection_over_first(boxes: Tensor, regions: Tensor) -> Float[Tensor, "n m"]:
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)[:, None]
