"""Tensor parity: the candidates of an ONNX file against those of the torch graph it came from, box by box.

Candidates have no promised order and scores tie, so each of a tile's best candidates is matched with its nearest
counterpart of the same label, in both directions: what one side has and the other lacks counts against the match.
Where a level's top-k cuts, rounding decides who is in; candidates that close to a cut are not compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from export.bundle.manifest import Precision, TensorParity
from export.onnx.exportable import ExportableDetector
from export.precision.ort_session import open_session
from ifkd.core.detections import Array, Candidates, pairwise_iou

COMPARED_PER_TILE = 100
"""The best candidates of each tile that are compared, from each side."""
MATCH_IOU = 0.99


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What two arithmetics may differ by."""

    score: float
    """Largest difference of matched scores."""
    box_px: float
    """Largest difference of matched coordinates, pixels of the tile."""
    matched: float
    """Least share of candidates with a counterpart."""
    cut_margin: float
    """A candidate is compared when its score is above its level's lowest by this share of it."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(score=1e-3, box_px=0.05, matched=1.0, cut_margin=0.001),
    "fp16": Tolerance(score=1e-2, box_px=1.0, matched=0.98, cut_margin=0.05),
}


def check_tensor_parity(
    graph: ExportableDetector, onnx_path: Path, tiles: Array, *, precision: Precision
) -> TensorParity:
    """Run torch and ONNX Runtime on the same uint8 tiles and compare their candidates.

    Args:
        graph: The torch side.
        onnx_path: The ONNX side, run on the CPU.
        tiles: uint8 [tiles, 3, height, width].
        precision: Chooses the tolerance.
    """
    reference = [_torch_candidates(graph, tile[None]) for tile in tiles]
    session = open_session(onnx_path)
    other = [Candidates(*session.run(["boxes", "scores", "labels"], {"tiles": tile[None]})) for tile in tiles]
    return compare_candidates(
        _stack(reference), _stack(other), levels=graph.level_sizes(), tolerance=TOLERANCES[precision]
    )


def compare_candidates(
    reference: Candidates, other: Candidates, *, levels: Sequence[tuple[int, bool]], tolerance: Tolerance
) -> TensorParity:
    """Match two answers to the same tiles.

    Args:
        reference: One side.
        other: The other side, of the same shape.
        levels: How the k candidates follow each other: (number, whether more were cut off), level by level.
        tolerance: Limits.

    Returns:
        The figures. Answers with NaN or infinity are not compared, and where nothing was compared nothing is passed.
    """
    compared, score_differences, box_differences = 0, [0.0], [0.0]
    matched = 0
    finite = all(np.isfinite(side.scores).all() and np.isfinite(side.boxes).all() for side in (reference, other))
    for tile in range(len(reference) if finite else 0):
        for this, that in ((reference, other), (other, reference)):
            chosen = _above_cuts(this.scores[tile], levels, tolerance.cut_margin)
            compared += len(chosen)
            for row in chosen.tolist():
                pair = _nearest(this, row, that, tile, tolerance)
                if pair is not None:
                    matched += 1
                    score_differences.append(pair[0])
                    box_differences.append(pair[1])
    share = matched / compared if compared else 0.0
    score, box = max(score_differences), max(box_differences)
    passed = compared > 0 and share >= tolerance.matched and score <= tolerance.score and box <= tolerance.box_px
    return TensorParity(
        tiles=len(reference),
        candidates=compared,
        matched=share,
        max_score_difference=score,
        max_box_difference_px=box,
        tolerance={
            "score": tolerance.score,
            "box_px": tolerance.box_px,
            "matched": tolerance.matched,
            "cut_margin": tolerance.cut_margin,
        },
        passed=passed,
    )


def _above_cuts(scores: Array, levels: Sequence[tuple[int, bool]], margin: float) -> Array:
    """Return the indices of the best candidates of one tile, those near a level's cut left out."""
    floor = np.empty_like(scores)
    start = 0
    for size, cut in levels:
        level = scores[start : start + size]
        floor[start : start + size] = level.min() * (1 + margin) if cut else -1.0
        start += size
    assert start == len(scores), "levels do not add up to the candidates"
    order = np.argsort(-scores, kind="stable")
    return order[~(scores[order] <= floor[order])][:COMPARED_PER_TILE]


def _nearest(
    this: Candidates, row: int, that: Candidates, tile: int, tolerance: Tolerance
) -> tuple[float, float] | None:
    """Return score and box difference to the nearest counterpart of a candidate, or None when there is none."""
    same = np.flatnonzero(that.labels[tile] == this.labels[tile, row])
    box = this.boxes[tile, row]
    box_difference = np.abs(that.boxes[tile, same] - box).max(axis=1, initial=0.0)
    iou = pairwise_iou(box[None], that.boxes[tile, same])[0]
    # A box cut to a line at the tile's edge has no area and no IoU; its coordinates still tell.
    near = (iou >= MATCH_IOU) | (box_difference <= tolerance.box_px)
    if not near.any():
        return None
    score_difference = np.abs(that.scores[tile, same] - this.scores[tile, row])
    distance = score_difference / tolerance.score + box_difference / tolerance.box_px
    best = np.where(near, distance, np.inf).argmin()
    if not np.isfinite(distance[best]):
        return None
    return float(score_difference[best]), float(box_difference[best])


def _torch_candidates(graph: ExportableDetector, tiles: Array) -> Candidates:
    with torch.inference_mode():
        boxes, scores, labels = graph(torch.from_numpy(np.ascontiguousarray(tiles)))
    return Candidates(boxes.numpy(), scores.numpy(), labels.numpy())


def _stack(answers: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([answer.boxes for answer in answers]),
        np.concatenate([answer.scores for answer in answers]),
        np.concatenate([answer.labels for answer in answers]),
    )
