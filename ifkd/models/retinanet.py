"""RetinaNet (Lin et al. 2017) with MMDetection's assignment and losses, as in the paper's experiments."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks, world_size
from ifkd.models.anchors import ASPECT_RATIOS, IGNORE, OCTAVE_SCALES
from ifkd.models.backbones import Backbone
from ifkd.models.box_decoding import Side, best_pairs, concat_predictions, decode_boxes, flatten_predictions
from ifkd.models.detector import CandidateTensors, Detector, DetectorOutput, Images, Targets, init_towers
from ifkd.models.fpn import CoarseLevels, Pyramid
from ifkd.models.oriented_deltas import decode_oriented, encode_oriented, gaussian_losses

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECT_RATIOS)


class RetinaNet(Detector):
    """One-stage detector on P3 to P7 with nine anchors a cell; an oriented one predicts five deltas, not four."""

    strides = (8, 16, 32, 64, 128)
    pos_iou, neg_iou, min_pos_iou = 0.5, 0.4, 0.0

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.anchor_scales = tuple(config.smallest_anchor * scale for scale in OCTAVE_SCALES)
        body = Backbone(config, stages=(1, 2, 3))
        self.backbone = Pyramid(body, config, CoarseLevels(body.out_channels[-1], config.channels))
        self.head = RetinaNetHead(config.channels, ANCHORS_PER_CELL, num_classes)
        if config.oriented:
            layer = nn.Conv2d(config.channels, 5 * ANCHORS_PER_CELL, kernel_size=3, padding=1)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(cast("Tensor", layer.bias), 0.0)
            self.head.regression_head.bbox_reg = layer
        if config.head_init == "kaiming":
            init_towers(self.head.classification_head.conv, self.head.regression_head.conv)
        self._coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(self, images: Images) -> DetectorOutput:
        """Return P3 to P7, class logits and box deltas."""
        pyramid = self.backbone(images)
        classes, boxes = self.head.classification_head, self.head.regression_head
        logits = tuple(classes.cls_logits(classes.conv(level)) for level in pyramid)
        return DetectorOutput(pyramid, logits, tuple(boxes.bbox_reg(boxes.conv(level)) for level in pyramid))

    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return focal loss and L1 on deltas, divided by the number of positive anchors of the batch (at least 1).

        An oriented detector adds the divergence of the boxes' Gaussians (see `gaussian_losses`).
        """
        anchors = torch.cat(self.anchors(output))
        logits = concat_predictions(output.logits, ANCHORS_PER_CELL)
        deltas = concat_predictions(output.deltas, ANCHORS_PER_CELL)
        classification, regression, divergence, positives = (logits.new_zeros(()) for _ in range(4))
        for image, target in enumerate(targets):
            assigned = self.assign_anchors(anchors, target)
            positive, valid = assigned >= 0, assigned != IGNORE
            target_classes = torch.zeros_like(logits[image])
            target_classes[positive, target.labels[assigned[positive]]] = 1.0
            focal = sigmoid_focal_loss(logits[image][valid], target_classes[valid], FOCAL_ALPHA, FOCAL_GAMMA, "sum")
            classification = classification + focal
            matched = anchors[positive]
            if self.config.oriented:
                assert target.oriented is not None, "the data set has been checked for oriented boxes"
                target_deltas = encode_oriented(target.oriented[assigned[positive]], matched)
                divergence = divergence + gaussian_losses(matched, deltas[image][positive], target_deltas).sum()
            else:
                target_deltas = self._coder.encode_single(target.boxes[assigned[positive]], matched)
            regression = regression + functional.l1_loss(deltas[image][positive], target_deltas, reduction="sum")
            positives += positive.sum()
        normalizer = mean_over_ranks(positives).clamp_min(1 / world_size())
        losses = {"classification": classification / normalizer, "boxes": regression / normalizer}
        return losses | {"divergence": divergence / normalizer} if self.config.oriented else losses

    def decode(
        self, anchors: Float[Tensor, "*shape 4"], deltas: Float[Tensor, "*shape values"], size: tuple[Side, Side] | None
    ) -> tuple[Tensor, ...]:
        """Return boxes [..., 4], clipped to `size` if it is given, and oriented boxes [..., 5] if there are any."""
        decode = decode_oriented if self.config.oriented else lambda *values: (decode_boxes(*values),)
        return decode(anchors, deltas, size)

    def candidates(self, output: DetectorOutput, *, size: tuple[int, int], per_level: int) -> CandidateTensors:
        """Return the best anchor-class pairs of each level, decoded and clipped to `size`."""
        anchors, deltas, scores, labels = [], [], [], []
        maps = zip(self.anchors(output), output.logits, output.deltas, strict=True)
        for level_anchors, level_logits, level_deltas in maps:
            logits = flatten_predictions(level_logits, ANCHORS_PER_CELL)
            values = flatten_predictions(level_deltas, ANCHORS_PER_CELL)
            best = best_pairs(logits, min(per_level, logits[0].numel()))
            anchors.append(level_anchors[best.anchors])
            deltas.append(values.gather(1, best.anchors[:, :, None].expand(-1, -1, values.shape[2])))
            scores.append(best.scores)
            labels.append(best.labels)
        upright, *oriented = self.decode(torch.cat(anchors, dim=1), torch.cat(deltas, dim=1).float(), size)
        return upright, torch.cat(scores, dim=1).float().sigmoid(), torch.cat(labels, dim=1), *oriented

    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:
        """Return each level's number of candidates, and whether it has more pairs than that."""
        pairs = [level[0].numel() for level in output.logits]
        return tuple((min(count, per_level), count > per_level) for count in pairs)
