"""Find the step of the pipeline where an engine and the reference start to differ.

    image file ─► preprocess ─► raw head ─► decode ─► postprocess ─► merge
                  tiles         scores,     boxes     detections     detections
                                classes               of a tile      of the image

Engines return candidates with decoded boxes. Scores and classes depend on the raw head alone, so that a mistake in
decoding shows as different boxes with equal scores. Differences of nearly all candidates without a common direction, of
a file that is not fp32, come from its *precision*.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.accuracy.image_detection import ImageResult
from deploy.parity.matching import greedy_pairs, match, one_to_one
from deploy.parity.tolerances import Tolerances
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Detections, box_areas, pairwise_iou
from ifkd.core.postprocess import PostprocessConfig

StepName = Literal["preprocess", "raw head", "decode", "postprocess", "merge"]
MIN_IOU = 0.25
CLOSE_SCORE = 1e-4
"""Candidates of a class without overlap are a pair, with a displaced box, when their scores differ by no more."""
CLEARLY_ABOVE_THRESHOLD = 1.1
"""Score over the threshold from which an unpaired candidate counts."""
WIDESPREAD = 0.5
"""Least fraction of candidates that rounding changes."""
WITHIN_TOLERANCES = "within the tolerances"


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
    """Return the difference of tiles.

    Args:
        pairs: For each image whose tiles differ, the tiles of the reference and of the engine, uint8 of any shape;
            different shapes count as the largest possible difference.
        images: Number of images.
        differing: Number of images whose tiles differ.
    """
    largest = total = count = inner = ours_squared = theirs_squared = 0.0
    for reference, engine in pairs:
        if reference.shape != engine.shape:
            return TileDrift(images, differing, 255.0, 255.0, 0.0)
        ours, theirs = reference.astype(np.float64).ravel(), engine.astype(np.float64).ravel()
        difference = np.abs(ours - theirs)
        largest, total = max(largest, float(difference.max())), total + float(difference.sum())
        count += difference.size
        inner += float(ours @ theirs)
        ours_squared, theirs_squared = ours_squared + float(ours @ ours), theirs_squared + float(theirs @ theirs)
    norm = (ours_squared * theirs_squared) ** 0.5
    return TileDrift(images, differing, largest, total / count if count else 0.0, inner / norm if norm else 1.0)


class _PairedCandidates:
    """Candidates of all images, paired; row i of `reference` and of `engine` is a pair."""

    def __init__(
        self, reference: Mapping[int, ImageResult], engine: Mapping[int, ImageResult], config: PostprocessConfig
    ) -> None:
        self.class_changes = self.missing = self.extra = 0
        ours: list[Detections] = []
        theirs: list[Detections] = []
        for image_id, result in reference.items():
            mine, other = result.candidates, engine[image_id].candidates
            pairs, changes = _pairs(mine, other)
            self.class_changes += len(changes)
            rows = np.array([row for row, _ in [*pairs, *changes]], np.int64)
            columns = np.array([column for _, column in [*pairs, *changes]], np.int64)
            self.missing += _count_unpaired(mine, rows, config)
            self.extra += _count_unpaired(other, columns, config)
            ours.append(mine.select(rows))
            theirs.append(other.select(columns))
        self.reference = Detections.concatenate(ours)
        self.engine = Detections.concatenate(theirs)

    def __len__(self) -> int:
        return len(self.reference)

    def score_ratios(self) -> Array:
        """Return the engine's score over the reference's. float [n]."""
        ratios: Array = self.engine.scores.astype(np.float64) / self.reference.scores
        return ratios

    def shifts(self) -> Array:
        """Return the displacement of box centers, right and down, pixels. float [n, 2]."""
        moved = self.engine.boxes.astype(np.float64) - self.reference.boxes
        shifts: Array = (moved[:, :2] + moved[:, 2:]) / 2
        return shifts

    def has_score_factor(self, limits: Tolerances) -> bool:
        return _has_direction(self.score_ratios() - 1, limits.score_factor)

    def has_shift(self, limits: Tolerances) -> bool:
        return any(_has_direction(axis, limits.shift_px) for axis in self.shifts().T)


def find_drift_source(
    reference: Mapping[int, ImageResult],
    engine: Mapping[int, ImageResult],
    config: PostprocessConfig,
    limits: Tolerances,
    precision: Precision,
    *,
    tiles: TileDrift,
) -> DriftSource:
    """Return the step where an engine and the reference start to differ.

    Args:
        reference: Results by image id, with candidates.
        engine: Results for the same images.
        config: Thresholds of both.
        limits: The tolerances.
        precision: Precision of the engine.
        tiles: Difference of the tiles.
    """
    paired = _PairedCandidates(reference, engine, config)
    steps = (
        _compare_tiles(tiles),
        _compare_scores(paired, limits),
        _compare_boxes(paired, limits),
        _compare_detections("postprocess", "detections of tiles", _by_tile(reference), _by_tile(engine), limits),
        _compare_detections("merge", "detections of images", reference, engine, limits),
    )
    first = next((step for step in steps if not step.agrees), None)
    if first is None:
        return DriftSource(steps=steps, source=None, reason="all steps agree")
    if first.name == "raw head" and _is_resampled(paired, limits):
        reason = "all boxes have a common shift and the scores change too, as when the engine resamples the image"
        return DriftSource(steps=steps, source="preprocess", reason=reason)
    if first.name in {"raw head", "decode"} and precision != "fp32" and _is_rounded(paired, limits):
        reason = f"nearly all candidates change, in no common direction, as by rounding to {precision}"
        return DriftSource(steps=steps, source="precision", reason=reason)
    reason = f"{first.name} is the first step that differs: {first.description}"
    return DriftSource(steps=steps, source=first.name, reason=reason)


def _pairs(ours: Detections, theirs: Detections) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return index pairs of equal candidates, and of candidates that differ in their class only."""
    pairs: list[tuple[int, int]] = []
    for label in np.union1d(ours.labels, theirs.labels):
        rows, columns = np.flatnonzero(ours.labels == label), np.flatnonzero(theirs.labels == label)
        found = _pairs_of_class(ours.select(rows), theirs.select(columns))
        pairs += [(int(rows[i]), int(columns[j])) for i, j in found]
    used = np.array(pairs, np.int64).reshape(-1, 2)
    rows, columns = _rest(len(ours), used[:, 0]), _rest(len(theirs), used[:, 1])
    found = greedy_pairs(
        ours.boxes[rows], theirs.boxes[columns], ours.scores[rows], theirs.scores[columns], min_iou=0.9
    )
    return pairs, [(int(rows[i]), int(columns[j])) for i, j in found]


def _pairs_of_class(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Return index pairs by falling IoU less score difference, then pairs without overlap but with equal scores."""
    difference = np.abs(ours.scores[:, None] - theirs.scores[None, :])
    iou = pairwise_iou(ours.boxes, theirs.boxes)
    displaced = np.where(difference <= CLOSE_SCORE, -1.0 - difference, -np.inf)
    rank = np.where(iou >= MIN_IOU, iou - difference, displaced)
    rows, columns = np.nonzero(np.isfinite(rank))
    order = np.lexsort((columns, rows, -rank[rows, columns]))
    return one_to_one(rows[order], columns[order])


def _rest(count: int, used: Array) -> Array:
    return np.setdiff1d(np.arange(count), used)


def _count_unpaired(candidates: Detections, paired: Array, config: PostprocessConfig) -> int:
    """Return the number of candidates clearly above the score threshold that are not in a pair."""
    rest = _rest(len(candidates), paired)
    return int((candidates.scores[rest] > config.score_threshold * CLEARLY_ABOVE_THRESHOLD).sum())


def _compare_tiles(tiles: TileDrift) -> PipelineStep:
    words = f"the tiles of {tiles.differing} of {tiles.images} images differ, by up to {tiles.max:g} gray values"
    return PipelineStep(
        name="preprocess",
        compares="tiles of images, gray values 0 to 255",
        compared=tiles.images,
        max=tiles.max,
        mean=tiles.mean,
        cosine=tiles.cosine,
        agrees=not tiles.differing,
        description=words if tiles.differing else "equal bytes",
    )


def _compare_scores(paired: _PairedCandidates, limits: Tolerances) -> PipelineStep:
    ours, theirs = paired.reference.scores.astype(np.float64), paired.engine.scores.astype(np.float64)
    difference = np.abs(ours - theirs)
    problems = []
    if paired.class_changes > limits.class_changes:
        problems.append(f"the class of {paired.class_changes} candidates changed")
    counted = len(paired) + (paired.missing + paired.extra) / 2
    if counted and len(paired) / counted < limits.matched_fraction:
        problems.append(f"{paired.missing} candidates are missing and {paired.extra} are new")
    if len(paired):
        if paired.has_score_factor(limits):
            problems.append(f"scores are {np.median(paired.score_ratios()):.3f} times the reference's")
        elif difference.max() > limits.score_max or np.percentile(difference, 99) > limits.score_p99:
            problems.append(f"scores differ by up to {difference.max():.3g}")
    return _step("raw head", "scores and classes of candidates", ours, theirs, problems)


def _compare_boxes(paired: _PairedCandidates, limits: Tolerances) -> PipelineStep:
    ours, theirs = paired.reference.boxes.astype(np.float64), paired.engine.boxes.astype(np.float64)
    problems = []
    if len(paired):
        drift = 1 - _iou_of_pairs(ours, theirs)
        right, down = np.median(paired.shifts(), axis=0)
        moved = np.abs(ours - theirs).max(axis=1)
        if paired.has_shift(limits):
            problems.append(f"boxes are shifted by {right:+.2f} px to the right and {down:+.2f} px down")
        elif drift.max() > limits.iou_drift_max or np.percentile(drift, 99) > limits.iou_drift_p99:
            problems.append(f"{int((drift > limits.iou_drift_p99).sum())} boxes differ, by up to {moved.max():.2f} px")
    return _step("decode", "boxes of candidates, pixels", ours.ravel(), theirs.ravel(), problems)


def _step(name: StepName, compares: str, ours: Array, theirs: Array, problems: list[str]) -> PipelineStep:
    difference = np.abs(ours - theirs)
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return PipelineStep(
        name=name,
        compares=compares,
        compared=len(ours),
        max=float(difference.max()) if len(ours) else None,
        mean=float(difference.mean()) if len(ours) else None,
        cosine=float(ours @ theirs) / norm if norm else None,
        agrees=not problems,
        description="; ".join(problems) or WITHIN_TOLERANCES,
    )


def _compare_detections(
    name: StepName,
    compares: str,
    reference: Mapping[int, ImageResult],
    engine: Mapping[int, ImageResult],
    limits: Tolerances,
) -> PipelineStep:
    matching = match(reference, engine, limits.pairing())
    matched = matching.matched_fraction()
    missing = sum(one.in_reference for one in matching.unmatched)
    extra = len(matching.unmatched) - missing
    compared = sum(matching.reference_count.values())
    # Ties may excuse single detections, but not a different number of detections: postprocessing then differs.
    surplus = sum(matching.engine_count.values()) - compared
    count_differs = abs(surplus) > max(1.0, (1 - limits.matched_fraction + 0.02) * compared)
    agrees = not count_differs and (matched is None or matched >= limits.matched_fraction)
    words = f"{missing} missing and {extra} new" + (f", {surplus:+d} detections in total" if count_differs else "")
    return PipelineStep(
        name=name,
        compares=compares,
        compared=compared,
        agrees=agrees,
        description=WITHIN_TOLERANCES if agrees else words,
    )


def _by_tile(results: Mapping[int, ImageResult]) -> dict[int, ImageResult]:
    return {key: ImageResult(result.tile_detections, result.candidates) for key, result in results.items()}


def _has_direction(values: Array, limit: float) -> bool:
    """Return whether values [n] have a common direction: a median beyond the limit and half their quartile range."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return bool(abs(middle) > max(limit, (high - low) / 2))


def _is_resampled(paired: _PairedCandidates, limits: Tolerances) -> bool:
    return (
        len(paired) > 0
        and paired.class_changes <= limits.class_changes
        and not paired.has_score_factor(limits)
        and paired.has_shift(limits)
    )


def _is_rounded(paired: _PairedCandidates, limits: Tolerances) -> bool:
    if not len(paired) or paired.has_score_factor(limits) or paired.has_shift(limits):
        return False
    changed = (paired.engine.scores != paired.reference.scores) | (paired.engine.boxes != paired.reference.boxes).any(
        axis=1
    )
    return bool(changed.mean() >= WIDESPREAD)


def _iou_of_pairs(ours: Array, theirs: Array) -> Array:
    """Return the IoU of each pair of boxes [n, 4]. float [n]."""
    low, high = np.maximum(ours[:, :2], theirs[:, :2]), np.minimum(ours[:, 2:], theirs[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    areas = box_areas(ours) + box_areas(theirs)
    return intersection / np.maximum(areas - intersection, 1e-9)
