"""RetinaNet as it is deployed for tiles of several sizes: the trained detector's candidates, always as many."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from export.onnx.topk import UNWANTED, LevelTopK
from ifkd.models import DetectorOutput
from ifkd.models.anchor_assignment import Side, decode, flatten_predictions
from ifkd.models.retinanet import PER_CELL, RetinaNet


def candidates(
    detector: RetinaNet, output: DetectorOutput, *, size: tuple[Side, Side], rooms: Sequence[LevelTopK]
) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """Return what `detector.candidates` does; a level with fewer pairs than its room ends in empty boxes of score 0."""
    boxes, scores, labels = [], [], []
    for room, anchors, level_logits, level_deltas in zip(
        rooms, detector.anchors(output), output.logits, output.deltas, strict=True
    ):
        logits = room.filled(flatten_predictions(level_logits, PER_CELL), UNWANTED, axis=-2).flatten(1)
        deltas = room.filled(flatten_predictions(level_deltas, PER_CELL), axis=-2)
        best, pair = logits.topk(room.kept, dim=1)
        anchor = torch.div(pair, detector.num_classes, rounding_mode="trunc")  # as // here, and one operator in ONNX
        chosen = deltas.gather(1, anchor[:, :, None].expand(-1, -1, 4))
        boxes.append(decode(room.filled(anchors, axis=-2)[anchor], chosen, size))
        scores.append(torch.where(best > UNWANTED / 2, best.sigmoid(), torch.zeros_like(best)))
        labels.append(pair - anchor * detector.num_classes)
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1)
