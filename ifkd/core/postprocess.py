"""Score threshold and non-maximum suppression, the same in training and inference."""

import numpy as np

from ifkd.core.config import Schema
from ifkd.core.detections import Candidates, Detections, nms


class PostprocessConfig(Schema):
    """Thresholds that select detections among candidates."""

    score_threshold: float = 0.05
    """Candidates with a score above this are kept (0 to 1)."""
    iou_threshold: float = 0.5
    """IoU threshold of non-maximum suppression within a class."""
    max_detections: int = 100
    """Maximum number of detections per image or tile."""


def postprocess(
    candidates: Candidates, config: PostprocessConfig, *, size: tuple[int, int] | None = None
) -> list[Detections]:
    """Return the detections of each tile, by descending score; a `size` (height, width) clips the boxes first."""
    result = []
    for boxes, scores, labels in zip(candidates.boxes, candidates.scores, candidates.labels, strict=True):
        above = scores > config.score_threshold
        detections = Detections(boxes[above], scores[above], labels[above])
        if size is not None:
            detections = detections.clipped(size)
        detections = nms(detections, iou_threshold=config.iou_threshold)
        result.append(detections.select(np.arange(min(len(detections), config.max_detections))))
    return result
