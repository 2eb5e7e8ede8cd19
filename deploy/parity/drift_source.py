"""Find the step of the pipeline where an engine and the reference start to differ.

    image file ─► preprocess ─► raw head ─► decode ─► postprocess ─► merge
                  tiles         scores,     boxes     detections     detections
                                classes               of a tile      of the image

Scores and classes depend on the raw head alone, so a mistake in decoding shows as different boxes with equal scores.
Differences of nearly all candidates without a common direction, of a file that is not fp32, come from its *precision*.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deploy.accuracy.image_detection import ImageResult
from deploy.parity.drift import angle_differences
from deploy.parity.matching import Matching, Results, greedy_pairs, match, one_to_one, rows_by_label
from deploy.parity.tolerances import DetectionTolerances
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas, pairwise_iou
from ifkd.core.oriented_boxes import paired_intersection

StepName = Literal["preprocess", "raw head", "decode", "postprocess", "merge"]
MIN_IOU = 0.25
CLOSE_SCORE = 1e-4
"""Candidates of a class without overlap are a pair, with a displaced box, when their scores differ by no more."""
CLEARLY_ABOVE_THRESHOLD = 1.1
"""Score over the threshold from which an unpaired candidate counts."""
WIDESPREAD = 0.5
"""Least fraction of candidates that rounding changes."""
AGREEMENT = "within the tolerances"
DETECTIONS_OF = {"postprocess": "tiles", "merge": "images"}


class PipelineStep(Schema):
    """Comparison of both sides after one step of the pipeline."""

    name: StepName
    compares: str
    """Compared values and their unit."""
    compared: int
    """Number of compared values."""
    max: float | None = None
    """Largest absolute difference; None when nothing was compared."""
    mean: float | None = None
    """Mean absolute difference."""
    cosine: float | None = None
    """Cosine similarity of the values of both sides, each as one vector."""
    agrees: bool
    description: str
    """The result in words."""


class DriftSource(Schema):
    """The step where an engine and the reference start to differ."""

    steps: tuple[PipelineStep, ...]
    """In the order of the pipeline."""
    source: Literal[StepName, "precision"] | None
    """None when all steps agree."""
    reason: str


@dataclass(frozen=True, slots=True)
class TileDrift:
    """Difference of the tiles that both sides received, in gray values from 0 to 255."""

    images: int
    """Images whose tiles were compared by the digest of their bytes."""
    differing: int
    """Images whose tiles differ; the figures are those of their tiles."""
    max: float
    """Largest absolute difference."""
    mean: float
    cosine: float


def tile_drift(pairs: Iterable[tuple[Array, Array]], *, images: int, differing: int) -> TileDrift:
    """Return the difference of the tiles of `differing` of all `images`.

    `pairs` are the tiles of the reference and of the engine for each image whose tiles differ, uint8; different shapes
    count as the largest possible difference.
    """
    largest, sums = 0.0, np.zeros(5)
    for reference, engine in pairs:
        if reference.shape != engine.shape:
            return TileDrift(images, differing, 255.0, 255.0, 0.0)
        ours, theirs = reference.astype(np.float64).ravel(), engine.astype(np.float64).ravel()
        difference = np.abs(ours - theirs)
        largest = max(largest, float(difference.max()))
        sums += np.array([difference.sum(), difference.size, ours @ theirs, ours @ ours, theirs @ theirs])
    total, count, inner, ours_squared, theirs_squared = sums.tolist()
    norm = (ours_squared * theirs_squared) ** 0.5
    return TileDrift(images, differing, largest, total / count if count else 0.0, inner / norm if norm else 1.0)


class _PairedCandidates:
    """Candidates of all images, paired; row i of both sides is a pair."""

    def __init__(self, reference: Results, engine: Results, limits: DetectionTolerances, threshold: float) -> None:
        self.class_changes = self.missing = self.extra = 0
        ours: list[Detections] = []
        theirs: list[Detections] = []
        for image_id, result in reference.items():
            mine, other = result.candidates, engine[image_id].candidates
            pairs, changes = _pairs(mine, other)
            self.class_changes += len(changes)
            rows, columns = np.array([*pairs, *changes], np.int64).reshape(-1, 2).T
            self.missing += _count_unpaired(mine, rows, threshold)
            self.extra += _count_unpaired(other, columns, threshold)
            ours.append(mine.select(rows))
            theirs.append(other.select(columns))
        both = Detections.concatenate(ours), Detections.concatenate(theirs)
        self.boxes, self.engine_boxes = (one.boxes.astype(np.float64) for one in both)
        self.outlines, self.engine_outlines = (one.outlines.astype(np.float64) for one in both)
        self.scores, self.engine_scores = (one.scores.astype(np.float64) for one in both)
        self.score_ratios = self.engine_scores / self.scores
        moved = self.engine_boxes - self.boxes
        self.shifts = (moved[:, :2] + moved[:, 2:]) / 2
        """Displacement of box centers, right and down, pixels [n, 2]."""
        self.has_score_factor = _has_direction(self.score_ratios - 1, limits.score_factor)
        self.has_same_classes = self.class_changes <= limits.class_changes * len(self)
        self.has_shift = any(_has_direction(axis, limits.shift_px) for axis in self.shifts.T)

    def __len__(self) -> int:
        return len(self.boxes)


def find_drift_source(
    reference: Results,
    engine: Results,
    limits: DetectionTolerances,
    *,
    threshold: float,
    precision: Precision,
    tiles: TileDrift,
) -> DriftSource:
    """Return the step where an engine and the reference start to differ; scores are above half `threshold`."""
    paired, pairing = _PairedCandidates(reference, engine, limits, threshold), limits.pairing()
    steps = (
        _compare_tiles(tiles),
        _compare_scores(paired, limits),
        _compare_boxes(paired, limits),
        _compare_detections("postprocess", match(_by_tile(reference), _by_tile(engine), pairing), limits),
        _compare_detections("merge", match(reference, engine, pairing), limits),
    )
    first = next((step for step in steps if not step.agrees), None)
    if first is None:
        return DriftSource(steps=steps, source=None, reason="all steps agree")
    source: StepName | Literal["precision"] = first.name
    reason = f"{first.name} is the first step that differs: {first.description}"
    if first.name == "raw head" and paired.has_same_classes and paired.has_shift and not paired.has_score_factor:
        source = "preprocess"
        reason = "all boxes have a common shift and the scores change too, as when the engine resamples the image"
    elif first.name in {"raw head", "decode"} and precision != "fp32" and _is_rounded(paired):
        source = "precision"
        reason = f"nearly all candidates change, in no common direction, as by rounding to {precision}"
    return DriftSource(steps=steps, source=source, reason=reason)


def _pairs(ours: Detections, theirs: Detections) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return index pairs of equal candidates, and of candidates that differ in their class only."""
    pairs: list[tuple[int, int]] = []
    for rows, columns in rows_by_label(ours, theirs):
        found = _pairs_of_class(ours.select(rows), theirs.select(columns))
        pairs += [(int(rows[i]), int(columns[j])) for i, j in found]
    used = np.array(pairs, np.int64).reshape(-1, 2)
    rows, columns = np.delete(np.arange(len(ours)), used[:, 0]), np.delete(np.arange(len(theirs)), used[:, 1])
    mine, other = ours.select(rows), theirs.select(columns)
    found = greedy_pairs(mine.outlines, other.outlines, mine.scores, other.scores, min_iou=0.9)
    return pairs, [(int(rows[i]), int(columns[j])) for i, j in found]


def _pairs_of_class(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Return index pairs by falling IoU less score difference, then pairs without overlap but with equal scores."""
    difference, iou = np.abs(ours.scores[:, None] - theirs.scores), pairwise_iou(ours.outlines, theirs.outlines)
    displaced = np.where(difference <= CLOSE_SCORE, -1.0 - difference, -np.inf)
    rank = np.where(iou >= MIN_IOU, iou - difference, displaced)
    rows, columns = np.nonzero(np.isfinite(rank))
    order = np.lexsort((columns, rows, -rank[rows, columns]))
    return one_to_one(rows[order], columns[order])


def _count_unpaired(candidates: Detections, paired: Array, threshold: float) -> int:
    """Return the number of candidates clearly above the score threshold that are not in a pair."""
    return int((np.delete(candidates.scores, paired) > threshold * CLEARLY_ABOVE_THRESHOLD).sum())


def _compare_tiles(tiles: TileDrift) -> PipelineStep:
    words = f"the tiles of {tiles.differing} of {tiles.images} images differ, by up to {tiles.max:g} gray values"
    compares, problems = "tiles of images, gray values 0 to 255", [words] if tiles.differing else []
    figures = {"max": tiles.max, "mean": tiles.mean, "cosine": tiles.cosine}
    return _step("preprocess", compares, tiles.images, problems, agreement="equal bytes", **figures)


def _compare_scores(paired: _PairedCandidates, limits: DetectionTolerances) -> PipelineStep:
    difference = np.abs(paired.scores - paired.engine_scores)
    problems = []
    if not paired.has_same_classes:
        problems.append(f"the class of {paired.class_changes} candidates changed")
    counted = len(paired) + (paired.missing + paired.extra) / 2
    if counted and len(paired) / counted < limits.matched_fraction:
        problems.append(f"{paired.missing} candidates are missing and {paired.extra} are new")
    if paired.has_score_factor:
        problems.append(f"scores are {np.median(paired.score_ratios):.3f} times the reference's")
    elif len(paired) and (difference.max() > limits.score_max or np.percentile(difference, 99) > limits.score_p99):
        problems.append(f"scores differ by up to {difference.max():.3g}")
    figures = _figures(paired.scores, paired.engine_scores)
    return _step("raw head", "scores and classes of candidates", len(paired), problems, **figures)


def _compare_boxes(paired: _PairedCandidates, limits: DetectionTolerances) -> PipelineStep:
    ours, theirs = paired.boxes, paired.engine_boxes
    drift = 1 - _iou_of_pairs(paired.outlines, paired.engine_outlines)
    problems = []
    if paired.has_shift:
        right, down = np.median(paired.shifts, axis=0)
        problems.append(f"boxes are shifted by {right:+.2f} px to the right and {down:+.2f} px down")
    elif len(paired) and (drift.max() > limits.iou_drift_max or np.percentile(drift, 99) > limits.iou_drift_p99):
        count, moved = int((drift > limits.iou_drift_p99).sum()), np.abs(ours - theirs).max()
        problems.append(f"{count} boxes differ, by up to {moved:.2f} px")
    if paired.outlines.shape[1] == 5:
        angles = angle_differences(paired.outlines, paired.engine_outlines)
        if len(angles) and (angles.max() > limits.angle_max_deg or np.percentile(angles, 99) > limits.angle_p99_deg):
            problems.append(f"directions differ by up to {angles.max():.2f} degrees")
    figures = _figures(ours.ravel(), theirs.ravel())
    return _step("decode", "boxes of candidates, pixels", ours.size, problems, **figures)


def _compare_detections(name: StepName, matching: Matching, limits: DetectionTolerances) -> PipelineStep:
    matched = matching.matched_fraction()
    missing = sum(one.in_reference for one in matching.unmatched)
    compared = matching.reference_count.total()
    # Ties may excuse single detections, but not a different number of detections: postprocessing then differs.
    surplus = matching.engine_count.total() - compared
    count_differs = abs(surplus) > max(1.0, (1 - limits.matched_fraction + 0.02) * compared)
    agrees = not count_differs and (matched is None or matched >= limits.matched_fraction)
    words = f"{missing} missing and {len(matching.unmatched) - missing} new" + (
        f", {surplus:+d} detections in total" if count_differs else ""
    )
    return _step(name, f"detections of {DETECTIONS_OF[name]}", compared, [] if agrees else [words])


def _step(
    name: StepName, compares: str, compared: int, problems: list[str], *, agreement: str = AGREEMENT, **figures: Any
) -> PipelineStep:
    words, agrees = "; ".join(problems) or agreement, not problems
    return PipelineStep(name=name, compares=compares, compared=compared, agrees=agrees, description=words, **figures)


def _figures(ours: Array, theirs: Array) -> dict[str, Any]:
    """Return the differences of values [n]."""
    if not len(ours):
        return {}
    difference, norm = np.abs(ours - theirs), float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    cosine = float(ours @ theirs) / norm if norm else None
    return {"max": float(difference.max()), "mean": float(difference.mean()), "cosine": cosine}


def _by_tile(results: Results) -> dict[int, ImageResult]:
    return {key: ImageResult(result.tile_detections, result.candidates) for key, result in results.items()}


def _has_direction(values: Array, limit: float) -> bool:
    """Return whether values [n] have a common direction: a median beyond the limit and half their quartile range."""
    if not len(values):
        return False
    low, middle, high = np.percentile(values, [25, 50, 75])
    return bool(abs(middle) > max(limit, (high - low) / 2))


def _is_rounded(paired: _PairedCandidates) -> bool:
    if not len(paired) or paired.has_score_factor or paired.has_shift:
        return False
    changed = (paired.engine_scores != paired.scores) | (paired.engine_outlines != paired.outlines).any(axis=1)
    return bool(changed.mean() >= WIDESPREAD)


def _iou_of_pairs(ours: Array, theirs: Array) -> Array:
    """Return the IoU of each pair of boxes [n, 4] or [n, 5]. float [n]."""
    areas = box_areas(ours) + box_areas(theirs)
    if ours.shape[1] == 5:
        intersection = paired_intersection(ours, theirs)
        return intersection / np.maximum(areas - intersection, 1e-9)
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, 2:], theirs[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    return intersection / np.maximum(areas - intersection, 1e-9)
