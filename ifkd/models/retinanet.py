"""RetinaNet (Lin et al. 2017) with mmdet's assignment and losses, which the paper's numbers come from."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.models import anchors
from ifkd.models.anchor_assignment import UNDECIDED, assign, decode, flatten_predictions
from ifkd.models.detector import Detector, DetectorOutput, Targets, init_towers
from ifkd.models.fpn import RetinaNetPyramid

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
PER_CELL = len(anchors.OCTAVE_SCALES) * len(anchors.RATIOS)
"""Anchors of a cell."""


class RetinaNet(Detector):
    """One-stage detector on P3 to P7 with nine anchors a cell."""

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.strides = RetinaNetPyramid.strides
        self.backbone = RetinaNetPyramid(config)
        self.head = RetinaNetHead(config.channels, PER_CELL, num_classes)
        if config.head_init == "kaiming":
            init_towers(self.head.classification_head.conv, self.head.regression_head.conv)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

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

    def matches(self, anchors: Float[Tensor, "anchors 4"], target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the row of the object that each anchor learns from, or a code of `boxes.assign`."""
        return assign(anchors, target, positive=POSITIVE_IOU, negative=NEGATIVE_IOU, least_claim=0.0)

    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return focal loss and L1 on deltas, both over the number of positive anchors of the batch (at least 1)."""
        every_anchor = torch.cat(self.anchors(output))
        logits = torch.cat([flatten_predictions(level, PER_CELL) for level in output.logits], dim=1).float()
        deltas = torch.cat([flatten_predictions(level, PER_CELL) for level in output.deltas], dim=1).float()
        classification = logits.new_zeros(())
        regression = logits.new_zeros(())
        positives = logits.new_zeros(())
        for image, target in enumerate(targets):
            matched = self.matches(every_anchor, target)
            positive, counted = matched >= 0, matched != UNDECIDED
            wanted = torch.zeros_like(logits[image])
            wanted[positive, target.labels[matched[positive]]] = 1.0
            classification = classification + sigmoid_focal_loss(
                logits[image][counted], wanted[counted], alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum"
            )
            wanted_deltas = self._coder.encode_single(target.boxes[matched[positive]], every_anchor[positive])
            regression = regression + functional.l1_loss(deltas[image][positive], wanted_deltas, reduction="sum")
            positives += positive.sum()
        normalizer = mean_over_ranks(positives).clamp_min(1.0)
        return {"classification": classification / normalizer, "boxes": regression / normalizer}

    def candidates(
        self, output: DetectorOutput, *, size: tuple[int, int], per_level: int
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return the best anchor-class pairs of each level, decoded and cut to `size`."""
        boxes, scores, labels = [], [], []
        for level_anchors, level_logits, level_deltas in zip(
            self.anchors(output), output.logits, output.deltas, strict=True
        ):
            logits = flatten_predictions(level_logits, PER_CELL).flatten(1)
            deltas = flatten_predictions(level_deltas, PER_CELL)
            best, pair = logits.topk(min(per_level, logits.shape[1]), dim=1)
            anchor = torch.div(pair, self.num_classes, rounding_mode="trunc")  # as // here, and one operator in ONNX
            chosen_deltas = deltas.gather(1, anchor[:, :, None].expand(-1, -1, 4))
            boxes.append(decode(level_anchors[anchor], chosen_deltas.float(), size))
            scores.append(best.float().sigmoid())
            labels.append(pair - anchor * self.num_classes)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1)

    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:
        """Return each level's number of candidates, and whether it has more pairs than that."""
        pairs = [level[0].numel() for level in output.logits]
        return tuple((min(count, per_level), count > per_level) for count in pairs)
