"""Faster R-CNN (Ren et al. 2015) with a feature pyramid, and MMDetection's assignment and losses."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ifkd import recipe
from ifkd.models.backbones import Backbone
from ifkd.models.box_decoding import best_pairs, decode_boxes, flatten_predictions
from ifkd.models.detector import CandidateTensors, Detector, DetectorOutput, Images, SampledRois, Targets
from ifkd.models.fpn import Pyramid
from ifkd.models.roi_head import DELTA_WEIGHTS, RoiHead
from ifkd.models.rpn import ANCHORS_PER_CELL, MIN_SIZE, NMS_IOU, RegionProposalNetwork

PRE_NMS_TOP_N, POST_NMS_TOP_N = 2000, 1000
"""In training: anchors of each level before NMS, and proposals of an image after NMS."""


class FasterRcnn(Detector):
    """Two-stage detector. The pyramid's logits are objectness; the second stage classifies the proposals."""

    strides = (4, 8, 16, 32, 64)
    pos_iou, neg_iou, min_pos_iou = 0.7, 0.3, 0.3

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.anchor_scales = (config.smallest_anchor,)
        self.backbone = Pyramid(Backbone(config, stages=(0, 1, 2, 3)), config, LastLevelMaxPool())
        self.rpn = RegionProposalNetwork(config.channels, config.head_init)
        self.roi_heads = RoiHead(config, num_classes)

    def forward(self, images: Images) -> DetectorOutput:
        """Return P2 to P6, objectness logits and the anchors' box deltas."""
        pyramid = self.backbone(images)
        logits, deltas = self.rpn.head(list(pyramid))
        return DetectorOutput(pyramid=pyramid, logits=tuple(logits), deltas=tuple(deltas))

    @torch.no_grad()
    def proposals(
        self, output: DetectorOutput, *, size: tuple[int, int], pre_nms_top_n: int, post_nms_top_n: int
    ) -> list[Float[Tensor, "_ 4"]]:
        """Return the proposals of each image of `size` (height, width), best first, without gradient.

        NMS gets `pre_nms_top_n` anchors of each level and leaves at most `post_nms_top_n` proposals of an image.
        """
        boxes, scores, levels = [], [], []
        maps = zip(self.anchors(output), output.logits, output.deltas, strict=True)
        for level, (anchors, logits, deltas) in enumerate(maps):
            objectness = flatten_predictions(logits, ANCHORS_PER_CELL)[:, :, 0].float()
            best, index = objectness.topk(min(pre_nms_top_n, objectness.shape[1]), dim=1)
            all_deltas = flatten_predictions(deltas, ANCHORS_PER_CELL).float()
            best_deltas = all_deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
            boxes.append(decode_boxes(anchors[index], best_deltas, size))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index, level))
        images = zip(*(torch.cat(parts, dim=1) for parts in (boxes, scores, levels)), strict=True)
        return [_filter_proposals(*image)[:post_nms_top_n] for image in images]

    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the losses of both stages, and store the sampled RoIs in `output`."""
        size = output.image_size(self.strides[0])
        anchors = torch.cat(self.anchors(output))
        assignments = [self.assign_anchors(anchors, target) for target in targets]
        losses = self.rpn.losses(anchors, output, targets, assignments)
        proposals = self.proposals(output, size=size, pre_nms_top_n=PRE_NMS_TOP_N, post_nms_top_n=POST_NMS_TOP_N)
        roi_targets = self.roi_heads.sample(proposals, targets)
        boxes = [of_image.boxes for of_image in roi_targets]
        logits, deltas = self.roi_heads(output.pyramid, boxes, size)
        output.sampled[:] = [SampledRois(boxes, logits)]
        return losses | self.roi_heads.losses(logits, deltas, roi_targets)

    def classify(
        self, output: DetectorOutput, boxes: list[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "rois classes_and_background"]:
        """Return the second stage's class logits of each image's RoIs; background comes first."""
        logits, _ = self.roi_heads(output.pyramid, boxes, output.image_size(self.strides[0]))
        return logits

    def candidates(self, output: DetectorOutput, *, size: tuple[int, int], per_level: int) -> CandidateTensors:
        """Return the best `per_level` proposal-class pairs, decoded and clipped to `size`.

        An image with fewer proposals than `config.proposals` is padded with boxes of score 0.
        """
        k, classes = self.config.proposals, self.num_classes
        proposals = self.proposals(output, size=size, pre_nms_top_n=k, post_nms_top_n=k)
        logits, deltas = self.roi_heads(output.pyramid, proposals, size)
        counts = [len(boxes) for boxes in proposals]
        boxes = _pad(proposals, k)
        scores = _pad(list(logits.softmax(dim=1)[:, 1:].split(counts)), k)
        padded_deltas = _pad(list(deltas[:, 4:].split(counts)), k).view(len(counts), k * classes, 4)
        best = best_pairs(scores, min(per_level, k * classes))
        pair = best.anchors * classes + best.labels
        best_deltas = padded_deltas.gather(1, pair[:, :, None].expand(-1, -1, 4))
        best_boxes = boxes.gather(1, best.anchors[:, :, None].expand(-1, -1, 4))
        return decode_boxes(best_boxes, best_deltas, size, weights=DELTA_WEIGHTS), best.scores, best.labels

    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:  # noqa: ARG002
        """Return the one group of all proposals."""
        pairs = self.config.proposals * self.num_classes
        return ((min(pairs, per_level), pairs > per_level),)


def _filter_proposals(boxes: Tensor, scores: Tensor, levels: Tensor) -> Float[Tensor, "_ 4"]:
    """Return the boxes of one image, best first, without small ones and after NMS in each level."""
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIZE).all(dim=1)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    return boxes[batched_nms(boxes, scores, levels, NMS_IOU)]


def _pad(rows: list[Tensor], length: int) -> Float[Tensor, "batch length values"]:
    """Return each image's rows padded with zeros to `length`, stacked."""
    padded = rows[0].new_zeros((len(rows), length, rows[0].shape[1]))
    for image, values in enumerate(rows):
        padded[image, : len(values)] = values
    return padded
