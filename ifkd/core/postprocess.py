"""Candidates of a tile become its detections: the same few lines in training and behind every engine."""

import numpy as np

from ifkd.core.config import Schema
from ifkd.core.detections import Candidates, Detections, nms


class PostprocessConfig(Schema):
    """How detections are chosen among candidates (test-time settings)."""

    score_threshold: float = 0.05
    """A candidate counts when its score is above this (0 to 1)."""
    iou_threshold: float = 0.5
    """Of two boxes of one class with an IoU above this, the one with the higher score stays."""
    max_detections: int = 100
    """Detections kept per image or tile, best first."""


def postprocess(
    candidates: Candidates, selection: PostprocessConfig, *, size: tuple[int, int] | None = None
) -> list[Detections]:
    """Return the detections of each tile, by falling score.

    Args:
        candidates: What an engine answered.
        selection: Thresholds.
        size: When given, boxes are first cut to (height, width).
    """
    chosen = []
    for boxes, scores, labels in zip(candidates.boxes, candidates.scores, candidates.labels, strict=True):
        above = scores > selection.score_threshold
        detections = Detections(boxes[above], scores[above], labels[above])
        if size is not None:
            detections = detections.clipped(size)
        detections = nms(detections, iou_threshold=selection.iou_threshold)
        chosen.append(detections.select(np.arange(min(len(detections), selection.max_detections))))
    return chosen
