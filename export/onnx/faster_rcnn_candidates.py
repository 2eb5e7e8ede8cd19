"""Faster R-CNN as it is deployed: the same candidates as the trained detector's, by tensors of fixed size alone.

The trained detector suppresses proposals and pools regions with torchvision's operators, whose shapes depend on the
data and which a builder without a GPU refuses. Here suppression is a fixed number of matrix products, and pooling is
one GridSample over an atlas of the pyramid's levels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from export.onnx.topk import UNWANTED, LevelTopK
from ifkd.models import DetectorOutput, FasterRcnn
from ifkd.models.anchor_assignment import Side, decode, flatten_predictions
from ifkd.models.roi_head import DELTA_WEIGHTS, POOLED_LEVELS, POOLED_SIDE, SAMPLING_RATIO
from ifkd.models.rpn import NMS_IOU, PER_CELL, SMALLEST_SIDE

ROUNDS = 16
"""Rounds of suppression. The result is exact when no chain of boxes, each suppressing the next, is longer."""
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
"""A region of this side, pixels, is pooled from P4 (Lin et al. 2017, eq. 1)."""
BEYOND = 8.0
"""A place outside of the atlas, whose sides are at -1 and 1: samples outside of a level are 0, as GridSample's are."""
LEVEL_EPSILON = 1e-6
"""What torchvision adds before rounding a level down."""


def candidates(
    detector: FasterRcnn,
    output: DetectorOutput,
    *,
    size: tuple[Side, Side],
    per_level: int,
    rooms: Sequence[LevelTopK],
) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """Return what `detector.candidates` does, boxes in pixels of `size` (height, width).

    `rooms` tells how many anchors of each level may become proposals.
    """
    room, classes = detector.config.proposals, detector.num_classes
    boxes, real = propose(detector, output, size=size, room=room, rooms=rooms)
    strides = detector.strides[:POOLED_LEVELS]
    pooled = pool_regions([output.pyramid[level] for level in range(POOLED_LEVELS)], boxes, strides)
    head = detector.roi_heads
    logits, deltas = head.box_predictor(head.box_head(pooled))
    scores = logits.softmax(dim=1)[:, 1:].reshape(-1, room, classes) * real[:, :, None]
    moves = deltas.reshape(-1, room, classes + 1, 4)[:, :, 1:].reshape(-1, room * classes, 4)
    best, pair = scores.flatten(1).topk(min(per_level, room * classes), dim=1)
    region = torch.div(pair, classes, rounding_mode="trunc")  # as // here, and one operator in ONNX
    chosen = moves.gather(1, pair[:, :, None].expand(-1, -1, 4))
    start = boxes.gather(1, region[:, :, None].expand(-1, -1, 4))
    return decode(start, chosen, size, weights=DELTA_WEIGHTS), best, pair - region * classes


def propose(
    detector: FasterRcnn,
    output: DetectorOutput,
    *,
    size: tuple[Side, Side],
    room: int,
    rooms: Sequence[LevelTopK],
) -> tuple[Float[Tensor, "batch room 4"], Float[Tensor, "batch room"]]:
    """Return the `room` best proposals of each image, and 1 for each that is one; the rest are empty boxes."""
    starts, moves, bests = [], [], []
    levels = detector.anchors(output)
    width = max(level.kept for level in rooms)
    for level, anchors, logits, deltas in zip(rooms, levels, output.logits, output.deltas, strict=True):
        # Anchors that fill a level up are boxes without a side, and so no proposals.
        objectness = level.filled(flatten_predictions(logits, PER_CELL)[:, :, 0], UNWANTED, axis=-1)
        best, index = objectness.topk(level.kept, dim=1)
        every_move = level.filled(flatten_predictions(deltas, PER_CELL), axis=-2)
        chosen = every_move.gather(1, index[:, :, None].expand(-1, -1, 4))
        # Levels come to one length, so that all are decoded and suppressed at once.
        short = width - level.kept
        starts.append(functional.pad(level.filled(anchors, axis=-2)[index], (0, 0, 0, short)))
        moves.append(functional.pad(chosen, (0, 0, 0, short)))
        bests.append(functional.pad(best, (0, short)))
    every_box = decode(torch.cat(starts, dim=1), torch.cat(moves, dim=1), size)
    every_score = torch.cat(bests, dim=1).sigmoid()
    kept = suppress(every_box.reshape(-1, width, 4), iou=NMS_IOU, smallest_side=SMALLEST_SIDE)
    every_score = torch.where(kept.reshape(-1, width * len(levels)), every_score, -torch.ones_like(every_score))
    short = room - every_score.shape[1]
    if short > 0:
        every_box = functional.pad(every_box, (0, 0, 0, short))
        every_score = functional.pad(every_score, (0, short), value=-1.0)
    best, index = every_score.topk(room, dim=1)
    real = (best >= 0).to(every_box.dtype)
    return every_box.gather(1, index[:, :, None].expand(-1, -1, 4)) * real[:, :, None], real


def suppress(
    boxes: Float[Tensor, "batch n 4"], *, iou: float, smallest_side: float = 0.0, rounds: int = ROUNDS
) -> Bool[Tensor, "batch n"]:
    """Return which boxes non-maximum suppression keeps, of boxes that come best first.

    Let S[i, j] = 1 where box i is better than j and overlaps it by more than `iou`. Starting with every box kept,
    each round keeps those that no kept box suppresses. A box is decided after as many rounds as the longest chain
    of suppressions that ends in it, so the result is exact where no chain is longer than `rounds`; beyond, what
    was not decided may be kept or dropped wrongly.

    Args:
        boxes: Pixels, by falling score.
        iou: A box goes when its IoU with a kept one is above this.
        smallest_side: Boxes with a shorter side are dropped and suppress nothing.
        rounds: How often to repeat.
    """
    extent = boxes[..., 2:] - boxes[..., :2]
    large = ((extent[..., 0] >= smallest_side) & (extent[..., 1] >= smallest_side)).to(boxes.dtype)
    area = extent[..., 0] * extent[..., 1]
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    shared_area = _shared(x1, x2) * _shared(y1, y2)
    over = shared_area > iou * (area[:, :, None] + area[:, None, :] - shared_area)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    suppresses = (over & (rank[:, None] < rank[None, :])).to(boxes.dtype)
    large = large[:, None]
    kept = large
    for _ in range(rounds):
        kept = large * (torch.matmul(kept, suppresses) < 0.5).to(boxes.dtype)
    return kept[:, 0] > 0.5


def _shared(low: Float[Tensor, "batch n"], high: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n n"]:
    """Return the length along one axis that each pair of boxes shares; runtimes are slow where an axis of 2 is last."""
    return (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0)


def pool_regions(
    maps: list[Tensor], boxes: Float[Tensor, "batch regions 4"], strides: tuple[int, ...]
) -> Float[Tensor, "batch_regions channels side side"]:
    """Return what torchvision's `MultiScaleRoIAlign(output_size=7, sampling_ratio=2)` does, within 1e-4.

    Args:
        maps: The pooled levels, finest first, float32 [batch, channels, h, w].
        boxes: Pixels of the image.
        strides: Pixels of the image for one cell, by level.
    """
    heights = [level.shape[2] for level in maps]
    width = maps[0].shape[3]
    atlas = torch.cat([functional.pad(level, (0, width - level.shape[3])) for level in maps], dim=2)
    level = _levels(boxes, len(maps))
    every_level = [
        torch.stack([boxes.new_full((), value) for value in (1 / stride, *plane.shape[2:], sum(heights[:index]))])
        for index, (stride, plane) in enumerate(zip(strides, maps, strict=True))
    ]
    per_level = torch.stack(every_level)[level]
    y = _sample_points(boxes[..., 1] * per_level[..., 0], boxes[..., 3] * per_level[..., 0])
    x = _sample_points(boxes[..., 0] * per_level[..., 0], boxes[..., 2] * per_level[..., 0])
    high, wide, top = per_level[..., 1:2], per_level[..., 2:3], per_level[..., 3:4]
    inside_y, inside_x = (y >= -1) & (y <= high), (x >= -1) & (x <= wide)
    y = (top + y.clamp(min=0).minimum(high - 1)) * (2 / boxes.new_full((), sum(heights) - 1)) - 1
    x = x.clamp(min=0).minimum(wide - 1) * (2 / boxes.new_full((), width - 1)) - 1
    y = torch.where(inside_y, y, torch.full_like(y, BEYOND))
    x = torch.where(inside_x, x, torch.full_like(x, BEYOND))
    regions, points = boxes.shape[1], POOLED_SIDE * SAMPLING_RATIO
    grid = torch.stack(
        [
            x[:, :, None, :].expand(-1, -1, points, -1),
            y[:, :, :, None].expand(-1, -1, -1, points),
        ],
        dim=-1,
    ).reshape(-1, regions * points, points, 2)
    sampled = functional.grid_sample(atlas, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    pooled = functional.avg_pool2d(sampled, SAMPLING_RATIO)
    channels = maps[0].shape[1]
    split = pooled.reshape(-1, channels, regions, POOLED_SIDE, POOLED_SIDE)
    return split.transpose(1, 2).reshape(-1, channels, POOLED_SIDE, POOLED_SIDE)


def _levels(boxes: Float[Tensor, "batch regions 4"], count: int) -> Int64[Tensor, "batch regions"]:
    """Return the level, 0 the finest, that each region is pooled from: by the root of its area."""
    extent = boxes[..., 2:] - boxes[..., :2]
    side = (extent[..., 0] * extent[..., 1]).sqrt().clamp(min=1e-12)
    level = (CANONICAL_LEVEL + (side / CANONICAL_SIDE).log2() + LEVEL_EPSILON).floor() - 2
    return level.clamp(0, count - 1).to(torch.int64)


def _sample_points(low: Float[Tensor, "batch regions"], high: Float[Tensor, "batch regions"]) -> Tensor:
    """Return the places of the samples along one side, in cells of the level; a region is at least a cell long."""
    points = POOLED_SIDE * SAMPLING_RATIO
    places = (torch.arange(points, dtype=low.dtype, device=low.device) + 0.5) / points
    return low[..., None] + places * (high - low).clamp(min=1.0)[..., None]
