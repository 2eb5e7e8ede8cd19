"""RetinaNet (Lin et al. 2017) with MMDetection's assignment and losses, as in the paper's experiments."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from ifkd import recipe
from ifkd.compute.distributed import mean_over_ranks
from ifkd.models.anchor_assignment import IGNORE
from ifkd.models.anchors import ASPECT_RATIOS, OCTAVE_SCALES
from ifkd.models.backbones import Backbone
from ifkd.models.box_decoding import best_pairs, concat_predictions, decode_boxes, flatten_predictions
from ifkd.models.detector import Detector, DetectorOutput, Images, Targets, init_towers
from ifkd.models.fpn import CoarseLevels, Pyramid

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
ANCHORS_PER_CELL = len(OCTAVE_SCALES) * len(ASPECT_RATIOS)


class RetinaNet(Detector):
    """One-stage detector on P3 to P7 with nine anchors a cell."""

    strides = (8, 16, 32, 64, 128)
    pos_iou, neg_iou, min_pos_iou = 0.5, 0.4, 0.0

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.anchor_scales = tuple((config.anchor_scale or 4.0) * scale for scale in OCTAVE_SCALES)
        body = Backbone(config, stages=(1, 2, 3))
        self.backbone = Pyramid(body, config.channels, CoarseLevels(body.out_channels[-1], config.channels))
        self.head = RetinaNetHead(config.channels, ANCHORS_PER_CELL, num_classes)
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
        """Return focal loss and L1 on deltas, divided by the number of positive anchors of the batch (at least 1)."""
        anchors = torch.cat(self.anchors(output))
        logits = concat_predictions(output.logits, ANCHORS_PER_CELL)
        deltas = concat_predictions(output.deltas, ANCHORS_PER_CELL)
        classification, regression, positives = (logits.new_zeros(()) for _ in range(3))
        for image, target in enumerate(targets):
            assigned = self.assign_anchors(anchors, target)
            positive, valid = assigned >= 0, assigned != IGNORE
            target_classes = torch.zeros_like(logits[image])
            target_classes[positive, target.labels[assigned[positive]]] = 1.0
            focal = sigmoid_focal_loss(logits[image][valid], target_classes[valid], FOCAL_ALPHA, FOCAL_GAMMA, "sum")
            classification = classification + focal
            target_deltas = self._coder.encode_single(target.boxes[assigned[positive]], anchors[positive])
            regression = regression + functional.l1_loss(deltas[image][positive], target_deltas, reduction="sum")
            positives += positive.sum()
        normalizer = mean_over_ranks(positives).clamp_min(1.0)
        return {"classification": classification / normalizer, "boxes": regression / normalizer}

    def candidates(
        self, output: DetectorOutput, *, size: tuple[int, int], per_level: int
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return the best anchor-class pairs of each level, decoded and clipped to `size`."""
        boxes, scores, labels = [], [], []
        maps = zip(self.anchors(output), output.logits, output.deltas, strict=True)
        for level_anchors, level_logits, level_deltas in maps:
            logits = flatten_predictions(level_logits, ANCHORS_PER_CELL)
            deltas = flatten_predictions(level_deltas, ANCHORS_PER_CELL)
            best = best_pairs(logits, min(per_level, logits[0].numel()))
            best_deltas = deltas.gather(1, best.anchors[:, :, None].expand(-1, -1, 4))
            boxes.append(decode_boxes(level_anchors[best.anchors], best_deltas.float(), size))
            scores.append(best.scores.float().sigmoid())
            labels.append(best.labels)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1)

    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:
        """Return each level's number of candidates, and whether it has more pairs than that."""
        pairs = [level[0].numel() for level in output.logits]
        return tuple((min(count, per_level), count > per_level) for count in pairs)
