"""Faster R-CNN candidates with static shapes only, equal to the trained detector's.

torchvision's NMS and RoIAlign operators have data-dependent shapes and cannot be built without a GPU. Here, NMS is a
fixed number of matrix products, and RoIAlign is one GridSample over an atlas of the pyramid levels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from export.onnx.topk import PADDING_LOGIT, LevelTopK
from ifkd.models import DetectorOutput, FasterRcnn
from ifkd.models.box_decoding import Side, best_pairs, decode_boxes, flatten_predictions
from ifkd.models.roi_head import DELTA_WEIGHTS, POOLED_LEVELS, POOLED_SIDE, SAMPLING_RATIO
from ifkd.models.rpn import ANCHORS_PER_CELL, MIN_SIZE, NMS_IOU

NMS_ROUNDS = 16
"""Rounds of suppression; the result is exact if no chain of boxes, each suppressing the next, is longer."""
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
"""A region of this side, pixels, is pooled from P4 (Lin et al. 2017, eq. 1)."""
OUTSIDE = 8.0
"""Grid coordinate outside the atlas, which spans -1 to 1; GridSample returns 0 there, as RoIAlign outside a level."""
LEVEL_EPSILON = 1e-6
"""Added by torchvision before it rounds a level down."""


def candidates(
    detector: FasterRcnn,
    output: DetectorOutput,
    *,
    size: tuple[Side, Side],
    max_candidates: int,
    topk: Sequence[LevelTopK],
) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """Return the result of `detector.candidates`, at most `max_candidates` proposal-class pairs.

    `size` is (height, width), pixels; `topk` has the number of anchors of each level that can become proposals.
    """
    proposals, classes = detector.config.proposals, detector.num_classes
    boxes, valid = propose(detector, output, size=size, k=proposals, topk=topk)
    strides = detector.strides[:POOLED_LEVELS]
    pooled = pool_regions([output.pyramid[level] for level in range(POOLED_LEVELS)], boxes, strides)
    head = detector.roi_heads
    logits, deltas = head.box_predictor(head.box_head(pooled))
    scores = logits.softmax(dim=1)[:, 1:].reshape(-1, proposals, classes) * valid[:, :, None]
    class_deltas = deltas.reshape(-1, proposals, classes + 1, 4)[:, :, 1:].reshape(-1, proposals * classes, 4)
    best = best_pairs(scores, min(max_candidates, proposals * classes))
    pair = best.anchors * classes + best.labels
    best_deltas = class_deltas.gather(1, pair[:, :, None].expand(-1, -1, 4))
    best_boxes = boxes.gather(1, best.anchors[:, :, None].expand(-1, -1, 4))
    return decode_boxes(best_boxes, best_deltas, size, weights=DELTA_WEIGHTS), best.scores, best.labels


def propose(
    detector: FasterRcnn, output: DetectorOutput, *, size: tuple[Side, Side], k: int, topk: Sequence[LevelTopK]
) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"]]:
    """Return the k best proposals of each image and a mask, 1 for a proposal and 0 for padding (an empty box)."""
    level_boxes, level_deltas, level_scores = [], [], []
    levels = detector.anchors(output)
    width = max(level.k for level in topk)
    for level, anchors, logits, deltas in zip(topk, levels, output.logits, output.deltas, strict=True):
        # Padding anchors are boxes of size 0, which NMS drops.
        objectness = level.padded(flatten_predictions(logits, ANCHORS_PER_CELL)[:, :, 0], PADDING_LOGIT, axis=-1)
        best, index = objectness.topk(level.k, dim=1)
        padded_deltas = level.padded(flatten_predictions(deltas, ANCHORS_PER_CELL), axis=-2)
        best_deltas = padded_deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
        # All levels get the same length, so that one decode and one NMS process them all.
        padding = width - level.k
        level_boxes.append(functional.pad(level.padded(anchors, axis=-2)[index], (0, 0, 0, padding)))
        level_deltas.append(functional.pad(best_deltas, (0, 0, 0, padding)))
        level_scores.append(functional.pad(best, (0, padding)))
    boxes = decode_boxes(torch.cat(level_boxes, dim=1), torch.cat(level_deltas, dim=1), size)
    scores = torch.cat(level_scores, dim=1).sigmoid()
    kept = suppress(boxes.reshape(-1, width, 4), iou=NMS_IOU, min_side_px=MIN_SIZE)
    scores = torch.where(kept.reshape(-1, width * len(levels)), scores, -torch.ones_like(scores))
    padding = k - scores.shape[1]
    if padding > 0:
        boxes = functional.pad(boxes, (0, 0, 0, padding))
        scores = functional.pad(scores, (0, padding), value=-1.0)
    best, index = scores.topk(k, dim=1)
    valid = (best >= 0).to(boxes.dtype)
    return boxes.gather(1, index[:, :, None].expand(-1, -1, 4)) * valid[:, :, None], valid


def suppress(
    boxes: Float[Tensor, "batch n 4"], *, iou: float, min_side_px: float = 0.0, rounds: int = NMS_ROUNDS
) -> Bool[Tensor, "batch n"]:
    """Return a mask of the boxes that non-maximum suppression keeps.

    Boxes are pixels, by descending score. Those with a side below `min_side_px` are dropped and suppress nothing. Box
    i suppresses j if it has a higher score and their IoU exceeds `iou`. All boxes are kept at first; each round keeps
    the boxes that no kept box suppresses. A box is final after as many rounds as the longest chain of suppressions that
    ends in it: the boxes at the end of a chain longer than `rounds` may be kept or dropped incorrectly.
    """
    extent = boxes[..., 2:] - boxes[..., :2]
    large = ((extent[..., 0] >= min_side_px) & (extent[..., 1] >= min_side_px)).to(boxes.dtype)
    area = extent[..., 0] * extent[..., 1]
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    intersection = _overlap(x1, x2) * _overlap(y1, y2)
    over = intersection > iou * (area[:, :, None] + area[:, None, :] - intersection)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    suppresses = (over & (rank[:, None] < rank[None, :])).to(boxes.dtype)
    large = large[:, None]
    kept = large
    for _ in range(rounds):
        kept = large * (torch.matmul(kept, suppresses) < 0.5).to(boxes.dtype)
    return kept[:, 0] > 0.5


def _overlap(low: Float[Tensor, "batch n"], high: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n n"]:
    """Return the overlap of each pair of boxes along one axis; runtimes are slow if the last axis is x and y."""
    return (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0)


def pool_regions(
    maps: list[Tensor], boxes: Float[Tensor, "batch regions 4"], strides: tuple[int, ...]
) -> Float[Tensor, "batch_regions channels side side"]:
    """Return the result of torchvision's `MultiScaleRoIAlign(output_size=7, sampling_ratio=2)`, within 1e-4.

    The maps are float32 [batch, channels, h, w], finest first; boxes and strides are pixels of the image.
    """
    heights = [level.shape[2] for level in maps]
    width = maps[0].shape[3]
    atlas = torch.cat([functional.pad(level, (0, width - level.shape[3])) for level in maps], dim=2)
    level = _levels(boxes, len(maps))
    # (scale, height, width, first row in the atlas) of each level, then of each region's level
    geometry = [
        torch.stack([boxes.new_full((), value) for value in (1 / stride, *plane.shape[2:], sum(heights[:index]))])
        for index, (stride, plane) in enumerate(zip(strides, maps, strict=True))
    ]
    region_geometry = torch.stack(geometry)[level]
    y = _sample_points(boxes[..., 1] * region_geometry[..., 0], boxes[..., 3] * region_geometry[..., 0])
    x = _sample_points(boxes[..., 0] * region_geometry[..., 0], boxes[..., 2] * region_geometry[..., 0])
    rows, columns, top = region_geometry[..., 1:2], region_geometry[..., 2:3], region_geometry[..., 3:4]
    inside_y, inside_x = (y >= -1) & (y <= rows), (x >= -1) & (x <= columns)
    y = (top + y.clamp(min=0).minimum(rows - 1)) * (2 / boxes.new_full((), sum(heights) - 1)) - 1
    x = x.clamp(min=0).minimum(columns - 1) * (2 / boxes.new_full((), width - 1)) - 1
    y = torch.where(inside_y, y, torch.full_like(y, OUTSIDE))
    x = torch.where(inside_x, x, torch.full_like(x, OUTSIDE))
    regions, points = boxes.shape[1], POOLED_SIDE * SAMPLING_RATIO
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, points, -1), y[:, :, :, None].expand(-1, -1, -1, points)], dim=-1
    ).reshape(-1, regions * points, points, 2)
    sampled = functional.grid_sample(atlas, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    pooled = functional.avg_pool2d(sampled, SAMPLING_RATIO)
    channels = maps[0].shape[1]
    split = pooled.reshape(-1, channels, regions, POOLED_SIDE, POOLED_SIDE)
    return split.transpose(1, 2).reshape(-1, channels, POOLED_SIDE, POOLED_SIDE)


def _levels(boxes: Float[Tensor, "batch regions 4"], count: int) -> Int64[Tensor, "batch regions"]:
    """Return the index of the level, 0 the finest, that each region is pooled from, by the root of its area."""
    extent = boxes[..., 2:] - boxes[..., :2]
    side = (extent[..., 0] * extent[..., 1]).sqrt().clamp(min=1e-12)
    level = (CANONICAL_LEVEL + (side / CANONICAL_SIDE).log2() + LEVEL_EPSILON).floor() - 2
    return level.clamp(0, count - 1).to(torch.int64)


def _sample_points(low: Float[Tensor, "batch regions"], high: Float[Tensor, "batch regions"]) -> Tensor:
    """Return the sample coordinates along one axis, in cells of the level; a region is at least one cell long."""
    points = POOLED_SIDE * SAMPLING_RATIO
    positions = (torch.arange(points, dtype=low.dtype, device=low.device) + 0.5) / points
    return low[..., None] + positions * (high - low).clamp(min=1.0)[..., None]
