"""Tensor parity: compare the candidates of an ONNX file with those of the torch model it was exported from.

The order of candidates is undefined and scores can be equal. Each of a tile's best candidates is therefore matched with
its nearest counterpart of the same label, in both directions, so that missing and additional candidates both count.
Candidates with a score close to the lowest one that a level's top-k keeps are not compared: rounding decides which of
them are kept.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from export.bundle.manifest import Precision, TensorParity
from export.onnx.exportable import ExportableDetector
from export.precision.ort_session import open_session
from ifkd.core.detections import Array, Candidates, pairwise_iou
from ifkd.core.files import sha256_of
from ifkd.core.oriented_boxes import corner_distances

COMPARED_PER_TILE = 100
"""Number of best candidates that are compared per tile and direction."""
MATCH_IOU = 0.99


@dataclass(frozen=True, slots=True)
class TensorTolerance:
    """Largest allowed differences between two models."""

    score: float
    """Largest difference of matched scores."""
    box_px: float
    """Largest difference of matched coordinates, and distance of the corners of oriented boxes, pixels of the tile."""
    matched_fraction: float
    """Smallest fraction of candidates with a counterpart."""
    cut_margin: float
    """A candidate is compared if its score exceeds the lowest one of its level by more than this fraction."""


TOLERANCES: dict[Precision, TensorTolerance] = {
    "fp32": TensorTolerance(score=1e-3, box_px=0.05, matched_fraction=1.0, cut_margin=0.001),
    "fp16": TensorTolerance(score=1e-2, box_px=1.0, matched_fraction=0.98, cut_margin=0.05),
}


def check_tensor_parity(
    model: ExportableDetector, onnx_path: Path, tiles: Array, *, precision: Precision
) -> TensorParity:
    """Run torch and ONNX Runtime on the same tiles, uint8 [tiles, 3, height, width], and compare their candidates."""
    with torch.inference_mode():
        outputs = [model(torch.from_numpy(np.ascontiguousarray(tile[None]))) for tile in tiles]
    reference = Candidates(*(torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)))
    groups, tolerance = model.candidate_groups(), TOLERANCES[precision]
    parity = compare_candidates(reference, onnx_candidates(onnx_path, tiles), groups=groups, tolerance=tolerance)
    return parity.model_copy(update={"onnx_sha256": sha256_of(onnx_path)})


def onnx_candidates(path: Path, tiles: Array) -> Candidates:
    """Run an ONNX file with ONNX Runtime, tile by tile, and return its candidates."""
    session = open_session(path)
    found = [session.run(None, {"tiles": tile[None]}) for tile in tiles]
    return Candidates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def compare_candidates(
    reference: Candidates, other: Candidates, *, groups: Sequence[tuple[int, bool]], tolerance: TensorTolerance
) -> TensorParity:
    """Match two sets of candidates of the same tiles and of the same shape, and return their differences.

    `groups` are (number of candidates, whether top-k dropped others) in the order of the candidates. If one set
    contains NaN or infinity, nothing is compared; if nothing is compared, the check fails.
    """
    compared, score_differences, box_differences = 0, [], []
    values = [(side.scores, side.boxes, side.oriented) for side in (reference, other)]
    finite = all(np.isfinite(part).all() for side in values for part in side if part is not None)
    for tile in range(len(reference.scores) if finite else 0):
        for this, that in ((reference, other), (other, reference)):
            best = _best_above_cut(this.scores[tile], groups, tolerance.cut_margin)
            compared += len(best)
            for index in best.tolist():
                pair = _nearest(this, index, that, tile, tolerance)
                if pair is not None:
                    score_differences.append(pair[0])
                    box_differences.append(pair[1])
    fraction = len(score_differences) / compared if compared else 0.0
    score, box = max(score_differences, default=0.0), max(box_differences, default=0.0)
    matched = compared > 0 and fraction >= tolerance.matched_fraction
    return TensorParity(
        tiles=len(reference.scores),
        candidates=compared,
        matched_fraction=fraction,
        max_score_difference=score,
        max_box_difference_px=box,
        tolerance=asdict(tolerance),
        passed=matched and score <= tolerance.score and box <= tolerance.box_px,
    )


def _best_above_cut(scores: Array, groups: Sequence[tuple[int, bool]], margin: float) -> Array:
    """Return the indices of the best candidates of one tile, without those close to the lowest score of their group."""
    lowest = np.empty_like(scores)
    start = 0
    for size, dropped in groups:
        group = scores[start : start + size]
        lowest[start : start + size] = group.min() * (1 + margin) if dropped else -1.0
        start += size
    assert start == len(scores), "the groups do not add up to the candidates"
    order = np.argsort(-scores, kind="stable")
    return order[~(scores[order] <= lowest[order])][:COMPARED_PER_TILE]


def _nearest(
    this: Candidates, index: int, that: Candidates, tile: int, tolerance: TensorTolerance
) -> tuple[float, float] | None:
    """Return the differences in score and box to the nearest counterpart of a candidate, or None if it has none."""
    same = np.flatnonzero(that.labels[tile] == this.labels[tile, index])
    box = this.boxes[tile, index]
    box_difference = np.abs(that.boxes[tile, same] - box).max(axis=1, initial=0.0)
    iou = pairwise_iou(box[None], that.boxes[tile, same])[0]
    if this.oriented is not None and that.oriented is not None:
        turned = that.oriented[tile, same]
        distances = corner_distances(turned, np.broadcast_to(this.oriented[tile, index], turned.shape))
        box_difference = np.maximum(box_difference, distances)
    # A box clipped to the tile's edge can have no area and thus no IoU; compare its coordinates.
    near = (iou >= MATCH_IOU) | (box_difference <= tolerance.box_px)
    if not near.any():
        return None
    score_difference = np.abs(that.scores[tile, same] - this.scores[tile, index])
    distance = score_difference / tolerance.score + box_difference / tolerance.box_px
    nearest = np.where(near, distance, np.inf).argmin()
    if not np.isfinite(distance[nearest]):
        return None
    return float(score_difference[nearest]), float(box_difference[nearest])
