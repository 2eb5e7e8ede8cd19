"""Faster R-CNN (Ren et al. 2015) on a feature pyramid, with mmdet's assignment and losses."""

from jaxtyping import Float, Int64
from torch import Tensor

from ifkd import recipe
from ifkd.models.anchor_assignment import decode
from ifkd.models.anchors import REGION_SCALES, anchors_of_level
from ifkd.models.detector import Detector, DetectorOutput, SampledRois, Targets
from ifkd.models.fpn import FasterRcnnPyramid
from ifkd.models.roi_head import DELTA_WEIGHTS, RoiHead
from ifkd.models.rpn import RegionProposals, propose

PROPOSALS_BEFORE_NMS, PROPOSALS_KEPT = 2000, 1000
"""In training: anchors taken from each level, and proposals kept of an image."""


class FasterRcnn(Detector):
    """Two-stage detector: the pyramid's logits are objectness, and classes come from a second look at proposals."""

    def __init__(self, config: recipe.DetectorOptions, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.strides = FasterRcnnPyramid.strides
        self.backbone = FasterRcnnPyramid(config)
        self.rpn = RegionProposals(config.channels, config.head_init)
        self.roi_heads = RoiHead(config, num_classes)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> DetectorOutput:
        """Return P2 to P6, objectness logits and the anchors' box deltas."""
        pyramid = self.backbone(images)
        logits, deltas = self.rpn.head(list(pyramid))
        return DetectorOutput(pyramid=pyramid, logits=tuple(logits), deltas=tuple(deltas))

    def anchors(self, output: DetectorOutput) -> list[Float[Tensor, "_ 4"]]:
        """Return the anchors of each level of a forward."""
        return [
            anchors_of_level(stride, (logits.shape[2], logits.shape[3]), logits.device, scales=REGION_SCALES)
            for stride, logits in zip(self.strides, output.logits, strict=True)
        ]

    def matches(self, anchors: Float[Tensor, "anchors 4"], target: Targets) -> Int64[Tensor, " anchors"]:
        """Return the row of the object that each anchor of the first stage learns from."""
        return self.rpn.matches(anchors, target)

    def propose(
        self, output: DetectorOutput, *, size: tuple[int, int], before_nms: int, kept: int
    ) -> list[Float[Tensor, "_ 4"]]:
        """Return each image's proposals: of `before_nms` anchors a level, the `kept` best after suppression."""
        return propose(self.anchors(output), output.logits, output.deltas, size=size, before_nms=before_nms, kept=kept)

    def task_losses(self, output: DetectorOutput, targets: list[Targets]) -> dict[str, Tensor]:
        """Return the losses of both stages, and keep the regions of the second with `output`."""
        size = self._image_size(output)
        losses = self.rpn.losses(self.anchors(output), output.logits, output.deltas, targets)
        proposals = self.propose(output, size=size, before_nms=PROPOSALS_BEFORE_NMS, kept=PROPOSALS_KEPT)
        lessons = self.roi_heads.sample(proposals, targets)
        boxes = [lesson.boxes for lesson in lessons]
        logits, deltas = self.roi_heads(output.pyramid, boxes, size)
        output.sampled[:] = [SampledRois(boxes, logits)]
        return losses | self.roi_heads.losses(logits, deltas, lessons)

    def classify(
        self, output: DetectorOutput, boxes: list[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "rois classes_and_background"]:
        """Return the second stage's class logits of given regions of each image; background comes first."""
        logits, _ = self.roi_heads(output.pyramid, boxes, self._image_size(output))
        return logits

    def candidates(
        self, output: DetectorOutput, *, size: tuple[int, int], per_level: int
    ) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Return the best `per_level` proposal-class pairs, decoded and cut to `size`.

        An image with fewer proposals than `config.proposals` is filled up with boxes of score 0.
        """
        room, classes = self.config.proposals, self.num_classes
        proposals = self.propose(output, size=size, before_nms=room, kept=room)
        logits, deltas = self.roi_heads(output.pyramid, proposals, size)
        counts = [len(boxes) for boxes in proposals]
        boxes = _filled_up(proposals, room)
        scores = _filled_up(list(logits.softmax(dim=1)[:, 1:].split(counts)), room).flatten(1)
        moves = _filled_up(list(deltas[:, 4:].split(counts)), room).view(len(counts), room * classes, 4)
        best, pair = scores.topk(min(per_level, room * classes), dim=1)
        region = pair // classes
        chosen = moves.gather(1, pair[:, :, None].expand(-1, -1, 4))
        start = boxes.gather(1, region[:, :, None].expand(-1, -1, 4))
        return decode(start, chosen, size, weights=DELTA_WEIGHTS), best, pair - region * classes

    def candidate_groups(self, output: DetectorOutput, *, per_level: int) -> tuple[tuple[int, bool], ...]:  # noqa: ARG002
        """Return the one group of all proposals."""
        pairs = self.config.proposals * self.num_classes
        return ((min(pairs, per_level), pairs > per_level),)

    def _image_size(self, output: DetectorOutput) -> tuple[int, int]:
        """Return the (height, width) of the images of a forward, whose sides are multiples of 32."""
        finest = output.pyramid[0]
        return finest.shape[2] * self.strides[0], finest.shape[3] * self.strides[0]


def _filled_up(rows: list[Tensor], length: int) -> Float[Tensor, "batch length values"]:
    """Return each image's rows with zeros after them, stacked."""
    filled = rows[0].new_zeros((len(rows), length, rows[0].shape[1]))
    for image, values in enumerate(rows):
        filled[image, : len(values)] = values
    return filled
