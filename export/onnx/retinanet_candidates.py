"""RetinaNet candidates for tiles of several sizes: the trained detector's, padded to a fixed number."""

from collections.abc import Sequence

import torch

from export.onnx.topk import PADDING_LOGIT, LevelTopK
from ifkd.models import DetectorOutput
from ifkd.models.box_decoding import Side, best_pairs, flatten_predictions
from ifkd.models.detector import CandidateTensors
from ifkd.models.retinanet import ANCHORS_PER_CELL, RetinaNet


def candidates(
    detector: RetinaNet, output: DetectorOutput, *, size: tuple[Side, Side], topk: Sequence[LevelTopK]
) -> CandidateTensors:
    """Return the result of `detector.candidates`; padding candidates are empty boxes with score 0.

    `size` is (height, width), pixels.
    """
    anchors, deltas, scores, labels = [], [], [], []
    levels = zip(topk, detector.anchors(output), output.logits, output.deltas, strict=True)
    for level, level_anchors, level_logits, level_deltas in levels:
        logits = level.padded(flatten_predictions(level_logits, ANCHORS_PER_CELL), PADDING_LOGIT, axis=-2)
        values = level.padded(flatten_predictions(level_deltas, ANCHORS_PER_CELL), axis=-2)
        best = best_pairs(logits, level.k, most_anchors=level.most_anchors)
        anchors.append(level.padded(level_anchors, axis=-2)[best.anchors])
        deltas.append(values.gather(1, best.anchors[:, :, None].expand(-1, -1, values.shape[2])))
        scores.append(best.scores)
        labels.append(best.labels)
    upright, *oriented = detector.decode(torch.cat(anchors, dim=1), torch.cat(deltas, dim=1), size)
    best_logits = torch.cat(scores, dim=1)
    probabilities = torch.where(best_logits > PADDING_LOGIT / 2, best_logits.sigmoid(), torch.zeros_like(best_logits))
    return upright, probabilities, torch.cat(labels, dim=1), *oriented
