"""Tolerances of the differences between an engine and the torch reference, by precision."""

from pydantic import NonNegativeFloat

from deploy.parity.drift import Drift
from deploy.parity.matching import Matching, Pairing
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.data.metrics import Metrics
from ifkd.recipe import Fraction


class Tolerances(Schema):
    """Tolerances of one precision; each is the worst value that passes."""

    matched_fraction: Fraction
    """Least fraction of detections that are matched, ties excluded."""
    class_changes: int = 0
    """Most boxes with a changed class."""
    score_max: NonNegativeFloat
    """Largest score difference of a pair."""
    score_p99: NonNegativeFloat
    """Largest 99th percentile of the score differences."""
    score_factor: NonNegativeFloat
    """Largest distance of the median score ratio from 1; rounding errors have no common factor."""
    iou_drift_p99: NonNegativeFloat
    """Largest 99th percentile of 1 - IoU of the pairs."""
    iou_drift_max: NonNegativeFloat
    shift_px: NonNegativeFloat
    """Largest median displacement of box centers, pixels; rounding errors have no common direction."""
    mean_ap: NonNegativeFloat
    """Largest change of mAP."""
    ap50: NonNegativeFloat
    ap75: NonNegativeFloat

    def pairing(self) -> Pairing:
        """Return the criteria by which detections are matched: ties are as close as pairs must be."""
        return Pairing(tie_iou=max(0.5, 1 - self.iou_drift_p99), tie_score=self.score_p99)


class ToleranceTable(Schema):
    """Tolerances of all precisions."""

    fp32: Tolerances = Tolerances(
        matched_fraction=1.0, score_max=1e-3, score_p99=1e-3, score_factor=1e-3, iou_drift_p99=0.005,
        iou_drift_max=0.01, shift_px=0.02, mean_ap=0.001, ap50=0.001, ap75=0.001,
    )  # fmt: skip
    fp16: Tolerances = Tolerances(
        matched_fraction=0.99, score_max=0.05, score_p99=0.02, score_factor=0.01, iou_drift_p99=0.10,
        iou_drift_max=0.30, shift_px=0.10, mean_ap=0.005, ap50=0.01, ap75=0.01,
    )  # fmt: skip
    int8: Tolerances = Tolerances(
        matched_fraction=0.90, score_max=0.40, score_p99=0.20, score_factor=0.05, iou_drift_p99=0.40,
        iou_drift_max=0.50, shift_px=0.30, mean_ap=0.02, ap50=0.02, ap75=0.03,
    )  # fmt: skip

    def of(self, precision: Precision) -> Tolerances:
        """Return the tolerances of a precision."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8, "int8-cpu": self.int8}[precision]


class ToleranceCheck(Schema):
    """A measured value and its tolerance."""

    name: str
    value: float
    limit: float
    at_least: bool
    """Whether the limit is the least value that passes, and not the largest."""
    passed: bool
    description: str
    """The value in words, with its limit."""


def check_tolerances(
    matching: Matching, drift: Drift | None, reference: Metrics | None, metrics: Metrics | None, limits: Tolerances
) -> list[ToleranceCheck]:
    """Check the differences of the detections and, where both are given, of the metrics."""
    matched = matching.matched_fraction()
    compared = sum(matching.reference_count.values())
    checks = [
        check("compared", float(compared), 1.0, "detections of the reference", at_least=True),
        check(
            "matched_fraction",
            1.0 if matched is None else matched,
            limits.matched_fraction,
            "fraction of matched detections, ties excluded",
            at_least=True,
        ),
        check(
            "class_changes",
            float(len(matching.class_changes)),
            float(limits.class_changes),
            "boxes with a changed class",
        ),
    ]
    if drift is not None:
        factor = abs(drift.score_ratio - 1)
        shift = max(abs(drift.shift_x_px), abs(drift.shift_y_px))
        checks += [
            check("score_max", drift.score.max, limits.score_max, "largest score difference"),
            check("score_p99", drift.score.p99, limits.score_p99, "99th percentile of score differences"),
            check("score_factor", factor, limits.score_factor, "distance of the median score ratio from 1"),
            check("iou_drift_p99", drift.iou.p99, limits.iou_drift_p99, "99th percentile of 1 - IoU"),
            check("iou_drift_max", drift.iou.max, limits.iou_drift_max, "largest 1 - IoU"),
            check("shift_px", shift, limits.shift_px, "median displacement of box centers, pixels"),
        ]
    if reference is None or metrics is None:
        return checks
    for name, label in (("mean_ap", "mAP"), ("ap50", "AP50"), ("ap75", "AP75")):
        change = abs(getattr(metrics, name) - getattr(reference, name))
        checks.append(check(name, change, getattr(limits, name), f"change of {label}"))
    return checks


def check(name: str, value: float, limit: float, description: str, *, at_least: bool = False) -> ToleranceCheck:
    """Check a value against its limit, the least value that passes if `at_least` is set, else the largest."""
    passed = value >= limit if at_least else value <= limit
    sign = "≥" if at_least else "≤"
    return ToleranceCheck(
        name=name,
        value=float(value),
        limit=float(limit),
        at_least=at_least,
        passed=bool(passed),
        description=f"{description}: {value:.4g} ({sign} {limit:.4g})",
    )
