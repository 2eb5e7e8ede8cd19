"""How far paired detections lie apart, and what such a drift looks like in words."""

import numpy as np

from deploy.parity.matching import Matching
from ifkd.core.config import Schema
from ifkd.core.detections import Array

SHOWN_SHIFT_PX = 0.05
SHOWN_FACTOR = 0.002


HISTOGRAM_EDGES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
"""Differences range from rounding to another object, so the bins grow with them."""


class Histogram(Schema):
    """How many differences are how large."""

    edges: tuple[float, ...]
    """Where bins meet, rising."""
    counts: tuple[int, ...]
    """One more than edges: below the first, from each to the next, and from the last on."""


class Distribution(Schema):
    """A distribution of differences; larger is worse."""

    mean: float
    p50: float
    p99: float
    max: float
    histogram: Histogram | None = None


class Drift(Schema):
    """How far pairs lie apart."""

    pairs: int
    iou: Distribution
    """1 - IoU."""
    score: Distribution
    """Absolute score difference."""
    corner_px: Distribution
    """Largest displacement of a box edge, pixels."""
    score_ratio: float
    """Median of the engine's score over the reference's; 1 without a common factor."""
    shift_right_px: float
    """Median displacement of box centers, pixels."""
    shift_down_px: float
    size_ratio: float
    """Median of the engine's box side over the reference's."""


def drift_of(matching: Matching) -> Drift | None:
    """Return how far the pairs lie apart, or None when there are none."""
    if not matching.labels:
        return None
    before = np.stack(matching.reference_boxes).astype(np.float64)
    after = np.stack(matching.subject_boxes).astype(np.float64)
    scores_before = np.array(matching.reference_scores)
    scores_after = np.array(matching.subject_scores)
    moved = after - before
    centers = (moved[:, :2] + moved[:, 2:]) / 2
    sides_before, sides_after = before[:, 2:] - before[:, :2], after[:, 2:] - after[:, :2]
    right, down = np.median(centers, axis=0)
    return Drift(
        pairs=len(before),
        iou=distribution(1 - np.array(matching.ious)),
        score=distribution(np.abs(scores_after - scores_before)),
        corner_px=distribution(np.abs(moved).max(axis=1)),
        score_ratio=float(np.median(scores_after / scores_before)),
        shift_right_px=float(right),
        shift_down_px=float(down),
        size_ratio=float(np.median(sides_after / sides_before)),
    )


def symptoms_of(matching: Matching, drift: Drift | None, classes: tuple[str, ...]) -> list[str]:
    """Return what a drift looks like, most telling first; empty when it has no simple shape."""
    symptoms = []
    if flips := matching.flips:
        first = flips[0]
        assert first.became is not None
        count = (
            "1 box keeps its place but changes"
            if len(flips) == 1
            else f"{len(flips)} boxes keep their place but change"
        )
        symptoms.append(f"{count} class, first {classes[first.label]!r} to {classes[first.became]!r}")
    if drift is None:
        return symptoms
    if max(abs(drift.shift_right_px), abs(drift.shift_down_px)) >= SHOWN_SHIFT_PX:
        symptoms.append(
            f"boxes are shifted by {drift.shift_right_px:+.2f} px to the right and {drift.shift_down_px:+.2f} px down"
        )
    elif drift.corner_px.max >= 1 and drift.corner_px.p50 < SHOWN_SHIFT_PX:
        moved = sum(_largest_move(matching) >= 1)
        symptoms.append(
            f"{moved} of {drift.pairs} boxes moved, by up to {drift.corner_px.max:.2f} px, while the others stayed"
        )
    if abs(drift.size_ratio - 1) >= SHOWN_FACTOR:
        symptoms.append(f"boxes are {drift.size_ratio:.3f} times as large")
    if abs(drift.score_ratio - 1) >= SHOWN_FACTOR:
        symptoms.append(f"scores are {drift.score_ratio:.3f} times the reference's")
    return symptoms


def _largest_move(matching: Matching) -> Array:
    moved: Array = np.abs(np.stack(matching.subject_boxes) - np.stack(matching.reference_boxes)).max(axis=1)
    return moved


def distribution(values: Array) -> Distribution:
    """Return the distribution of differences [n], at least one."""
    p50, p99 = np.percentile(values, [50, 99])
    bins = np.searchsorted(HISTOGRAM_EDGES, values, side="right")
    counts = tuple(np.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 1).tolist())
    return Distribution(
        mean=float(values.mean()),
        p50=float(p50),
        p99=float(p99),
        max=float(values.max()),
        histogram=Histogram(edges=HISTOGRAM_EDGES, counts=counts),
    )
