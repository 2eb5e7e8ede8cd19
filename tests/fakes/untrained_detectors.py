"""Untrained detectors whose scores and boxes vary, so that exported files can be compared."""

import numpy as np
import torch
from torch import nn

from export.tiles import structured_noise
from ifkd import recipe
from ifkd.models import FasterRcnn, build_detector, normalize

TILES = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(2)])


def random_boxes(count: int, side: float, seed: int) -> torch.Tensor:
    """Return random boxes in a square of the given side, pixels."""
    source = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=source) * side
    extent = torch.rand(count, 2, generator=source) * side / 3 + 1
    return torch.cat([corner, corner + extent], dim=1)


def untrained_faster_rcnn(backbone: str, **options: object) -> FasterRcnn:
    """Return an untrained detector with varied scores and deltas."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = recipe.DetectorOptions.model_validate(
            {"family": "faster_rcnn", "backbone": backbone, "channels": 16, "box_head_width": 32, "proposals": 60}
            | options
        )
        detector = build_detector(settings, 3)
        assert isinstance(detector, FasterRcnn)
        for layer in (*detector.rpn.modules(), *detector.roi_heads.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _normalize_outputs(detector.eval())
    return detector


@torch.no_grad()
def _normalize_outputs(detector: FasterRcnn) -> None:
    """Scale the weights of the four last layers so that their outputs have a standard deviation near 1."""
    pyramid = detector.backbone(normalize(torch.from_numpy(TILES)))
    logits, deltas = detector.rpn.head(list(pyramid))
    rpn, last = detector.rpn.head, detector.roi_heads.box_predictor
    for layer, values in ((rpn.cls_logits, logits), (rpn.bbox_pred, deltas)):
        layer.weight /= torch.cat([value.flatten() for value in values]).std()
    boxes = [random_boxes(40, 40.0, seed) for seed in (3, 4)]
    scores, moves = detector.roi_heads(pyramid, boxes, (64, 64))
    last.cls_score.weight /= scores.std(dim=0).mean()
    last.bbox_pred.weight /= moves.std()
