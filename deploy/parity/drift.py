"""Drift: the differences of matched detections, as distributions and in words."""

import numpy as np

from deploy.parity.matching import Matching
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.oriented_boxes import corner_distances

MIN_SHIFT_PX = 0.05
MIN_FACTOR = 0.002
MIN_ANGLE_DEG = 1.0
"""Least median shift, distance of a median ratio from 1, and largest difference of directions that a symptom states."""
MIN_ELONGATION = 1.5
"""Length over width from which an oriented box has a direction: that of a square jumps."""
HISTOGRAM_EDGES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)


class Histogram(Schema):
    """Counts of differences by size."""

    edges: tuple[float, ...]
    """Limits of the bins, rising."""
    counts: tuple[int, ...]
    """One more than edges: below the first edge, between edges, and from the last edge on."""


class Distribution(Schema):
    """A distribution of differences; larger is worse."""

    mean: float
    p50: float
    p99: float
    max: float
    histogram: Histogram | None = None


class Drift(Schema):
    """Differences of matched detections."""

    pairs: int
    iou: Distribution
    """1 - IoU."""
    score: Distribution
    """Absolute score difference."""
    corner_px: Distribution
    """Largest displacement of an edge of a box, or of a corner of an oriented box, pixels."""
    score_ratio: float
    """Median of the engine's score over the reference's; 1 without a common factor."""
    shift_x_px: float
    """Median displacement of box centers to the right, pixels."""
    shift_y_px: float
    """Median displacement of box centers down, pixels."""
    size_ratio: float
    """Median of the engine's box side over the reference's: width and height, or length and width if oriented."""
    angle_deg: Distribution | None = None
    """Differences of the directions of oriented boxes, 0 to 90 degrees; None without boxes that have a direction."""


def measure_drift(matching: Matching) -> Drift | None:
    """Return the differences of the pairs, or None without pairs."""
    pairs = matching.pairs
    if not pairs:
        return None
    reference, engine = _outlines(matching)
    reference_scores, engine_scores = np.array([(pair.reference_score, pair.engine_score) for pair in pairs]).T
    if reference.shape[1] == 4:
        moved = engine - reference
        centers, sides = (moved[:, :2] + moved[:, 2:]) / 2, [one[:, 2:] - one[:, :2] for one in (engine, reference)]
    else:
        centers, sides = engine[:, :2] - reference[:, :2], [one[:, 2:4] for one in (engine, reference)]
    right, down = np.median(centers, axis=0).tolist()
    return Drift(
        pairs=len(pairs),
        iou=distribution(1 - np.array([pair.iou for pair in pairs])),
        score=distribution(np.abs(engine_scores - reference_scores)),
        corner_px=distribution(_displacements(reference, engine)),
        score_ratio=float(np.median(engine_scores / reference_scores)),
        shift_x_px=right,
        shift_y_px=down,
        size_ratio=float(np.median(sides[0] / sides[1])),
        angle_deg=_angle_distribution(reference, engine),
    )


def angle_differences(oriented: Array, others: Array) -> Array:
    """Return the differences of the directions of boxes [n, 5], degrees [m], of those that have a direction."""
    elongated = oriented[:, 2] >= MIN_ELONGATION * oriented[:, 3]
    difference = (oriented[elongated, 4].astype(np.float64) - others[elongated, 4]) % 180.0
    return np.minimum(difference, 180.0 - difference)


def _outlines(matching: Matching) -> tuple[Array, Array]:
    """Return the boxes of the reference and of the engine, float64: [n, 5] if all are oriented, else upright [n, 4]."""
    oriented = [(one.reference_oriented, one.engine_oriented) for one in matching.pairs]
    upright = [(one.reference_box, one.engine_box) for one in matching.pairs]
    chosen = upright if any(box is None for pair in oriented for box in pair) else oriented
    reference, engine = (np.stack(side).astype(np.float64) for side in zip(*chosen, strict=True))
    return reference, engine


def _displacements(reference: Array, engine: Array) -> Array:
    """Return how far the edges of upright boxes [n, 4], or the corners of oriented ones [n, 5], moved at most."""
    if reference.shape[1] == 5:
        return corner_distances(reference, engine)
    return np.asarray(np.abs(engine - reference).max(axis=1))


def _angle_distribution(reference: Array, engine: Array) -> Distribution | None:
    if reference.shape[1] == 4:
        return None
    differences = angle_differences(reference, engine)
    return distribution(differences) if len(differences) else None


def describe_drift(matching: Matching, drift: Drift | None, classes: tuple[str, ...]) -> list[str]:
    """Return the symptoms of a drift in words, most important first; empty when no pattern applies."""
    symptoms = []
    if changes := matching.class_changes:
        first = changes[0]
        assert first.changed_to is not None
        many = f"{len(changes)} boxes keep their place but change"
        words = many if len(changes) > 1 else "1 box keeps its place but changes"
        symptoms.append(f"{words} class, first {classes[first.label]!r} to {classes[first.changed_to]!r}")
    if drift is None:
        return symptoms
    right, down, largest = drift.shift_x_px, drift.shift_y_px, drift.corner_px.max
    if max(abs(right), abs(down)) >= MIN_SHIFT_PX:
        symptoms.append(f"boxes are shifted by {right:+.2f} px to the right and {down:+.2f} px down")
    elif largest >= 1 and drift.corner_px.p50 < MIN_SHIFT_PX:
        moved = int((_displacements(*_outlines(matching)) >= 1).sum())
        symptoms.append(f"{moved} of {drift.pairs} boxes moved, by up to {largest:.2f} px, while the others stayed")
    if drift.angle_deg is not None and drift.angle_deg.max >= MIN_ANGLE_DEG:
        symptoms.append(f"directions of boxes differ by up to {drift.angle_deg.max:.1f} degrees")
    if abs(drift.size_ratio - 1) >= MIN_FACTOR:
        symptoms.append(f"boxes are {drift.size_ratio:.3f} times as large")
    if abs(drift.score_ratio - 1) >= MIN_FACTOR:
        symptoms.append(f"scores are {drift.score_ratio:.3f} times the reference's")
    return symptoms


def distribution(values: Array) -> Distribution:
    """Return the distribution of differences [n], at least one."""
    p50, p99 = np.percentile(values, [50, 99]).tolist()
    bins = np.searchsorted(HISTOGRAM_EDGES, values, side="right")
    counts = tuple(np.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 1).tolist())
    mean, largest, histogram = (
        float(values.mean()),
        float(values.max()),
        Histogram(edges=HISTOGRAM_EDGES, counts=counts),
    )
    return Distribution(mean=mean, p50=p50, p99=p99, max=largest, histogram=histogram)
