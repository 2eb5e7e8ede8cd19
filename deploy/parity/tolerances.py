"""Tolerances of the differences between an engine and the torch reference, by precision, and their checks."""

from collections.abc import Sequence
from typing import Any

from pydantic import NonNegativeFloat

from deploy.engines.engine import EngineInfo
from deploy.parity.drift import Drift
from deploy.parity.matching import Matching, PairingCriteria
from deploy.scene.scene_score import SceneScore
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.data.metrics import Metrics
from ifkd.recipe import Fraction

Scores = Metrics | SceneScore | None
AP_LABELS = {"mean_ap": "mAP", "ap50": "AP50", "ap75": "AP75"}


class DetectionTolerances(Schema):
    """Tolerances of one precision; each is the worst value that passes."""

    matched_fraction: Fraction
    """Least fraction of detections that are matched, ties excluded."""
    class_changes: Fraction = 0.0
    """Largest fraction of the reference's detections whose class changed."""
    score_max: NonNegativeFloat
    """Largest score difference of a pair."""
    score_p99: NonNegativeFloat
    """Largest 99th percentile of the score differences."""
    score_factor: NonNegativeFloat
    """Largest distance of the median score ratio from 1; rounding errors have no common factor."""
    iou_drift_p99: NonNegativeFloat
    """Largest 99th percentile of 1 - IoU of the pairs."""
    iou_drift_max: NonNegativeFloat
    angle_p99_deg: NonNegativeFloat = 1.0
    """Largest 99th percentile of the differences of directions, oriented boxes at least 1.5 times as long as wide."""
    angle_max_deg: NonNegativeFloat = 5.0
    shift_px: NonNegativeFloat
    """Largest median displacement of box centers, pixels; rounding errors have no common direction."""
    mean_ap: NonNegativeFloat
    """Largest change of mAP."""
    ap50: NonNegativeFloat
    ap75: NonNegativeFloat

    def pairing(self) -> PairingCriteria:
        """Return the criteria by which detections are matched: ties are as close as pairs must be."""
        return PairingCriteria(tie_iou=max(0.5, 1 - self.iou_drift_p99), tie_score=self.score_p99)


class ToleranceTable(Schema):
    """Tolerances of all precisions."""

    # An INT8 file may miss a tenth of the detections and change a hundredth of the scores by more than 0.2, so one
    # class in a thousand may change too.
    # Directions of 614 detections of slender ships (8:1) differed by 0.00003 degrees (99th percentile) and 0.00006
    # (largest) in FP32, 0.1 and 0.4 in FP16, 4.7 and 10.6 in INT8. The limits are about ten times that in FP16, whose
    # errors grow with less slender boxes, and two to three times that in INT8; FP32 leaves room for TF32.
    fp32: DetectionTolerances = DetectionTolerances(
        matched_fraction=1.0, score_max=1e-3, score_p99=1e-3, score_factor=1e-3, iou_drift_p99=0.005,
        iou_drift_max=0.01, angle_p99_deg=0.1, angle_max_deg=0.5, shift_px=0.02, mean_ap=0.001, ap50=0.001, ap75=0.001,
    )  # fmt: skip
    fp16: DetectionTolerances = DetectionTolerances(
        matched_fraction=0.99, score_max=0.05, score_p99=0.02, score_factor=0.01, iou_drift_p99=0.10,
        iou_drift_max=0.30, shift_px=0.10, mean_ap=0.005, ap50=0.01, ap75=0.01,
    )  # fmt: skip
    int8: DetectionTolerances = DetectionTolerances(
        matched_fraction=0.90, class_changes=0.001, score_max=0.40, score_p99=0.20, score_factor=0.05,
        iou_drift_p99=0.40, iou_drift_max=0.50, angle_p99_deg=10.0, angle_max_deg=30.0, shift_px=0.30,
        mean_ap=0.02, ap50=0.02, ap75=0.03,
    )  # fmt: skip

    def of(self, precision: Precision) -> DetectionTolerances:
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


class EngineComparison(Schema):
    """Comparison of one engine with the reference."""

    backend: str
    precision: Precision
    failure: str | None = None
    """Reason why nothing was compared."""
    reference_detections: int = 0
    engine_detections: int = 0
    tied: int = 0
    """Detections of both sides that are ties."""
    matched_fraction: float | None = None
    drift: Drift | None = None
    """None without pairs."""
    tolerances: tuple[ToleranceCheck, ...] = ()
    passed: bool
    verdict: str

    @property
    def name(self) -> str:
        """Backend and precision."""
        return f"{self.backend} {self.precision}"


def compared_fields(
    info: EngineInfo, matching: Matching, drift: Drift | None, checks: Sequence[ToleranceCheck]
) -> dict[str, Any]:
    """Return the fields of the comparison of an engine that ran, all but the verdict."""
    return {
        "backend": info.backend,
        "precision": info.precision,
        "reference_detections": matching.reference_count.total(),
        "engine_detections": matching.engine_count.total(),
        "tied": matching.tied_count.total(),
        "matched_fraction": matching.matched_fraction(),
        "drift": drift,
        "tolerances": tuple(checks),
        "passed": all(one.passed for one in checks),
    }


def failed_fields(backend: str, precision: Precision, error: Exception) -> dict[str, Any]:
    """Return the fields of the comparison of an engine that failed."""
    verdict = f"failed to run ({error})"
    return {"backend": backend, "precision": precision, "failure": str(error), "passed": False, "verdict": verdict}


def check_tolerances(
    matching: Matching, drift: Drift | None, before: Scores, after: Scores, limits: DetectionTolerances, *, of: str = ""
) -> list[ToleranceCheck]:
    """Check the differences of the detections and of each metric that both sides have; `of` precedes its name."""
    matched, compared = matching.matched_fraction(), float(matching.reference_count.total())
    changes = len(matching.class_changes) / max(compared, 1.0)
    words = "fraction of matched detections, ties excluded"
    checks = [
        check("compared", compared, 1.0, "detections of the reference", at_least=True),
        check("matched_fraction", matched or 0.0, limits.matched_fraction, words, at_least=True),
        check("class_changes", changes, limits.class_changes, "fraction of boxes with a changed class"),
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
        if (angles := drift.angle_deg) is not None:
            words = "of the differences of directions, degrees"
            checks += [
                check("angle_p99_deg", angles.p99, limits.angle_p99_deg, f"99th percentile {words}"),
                check("angle_max_deg", angles.max, limits.angle_max_deg, f"largest {words}"),
            ]
    for name, label in AP_LABELS.items():
        old, new = getattr(before, name, None), getattr(after, name, None)
        if old is not None and new is not None:
            checks.append(check(name, abs(new - old), getattr(limits, name), f"change of {of}{label}"))
    return checks


def check(name: str, value: float, limit: float, description: str, *, at_least: bool = False) -> ToleranceCheck:
    """Check a value against its limit, the least value that passes if `at_least` is set, else the largest."""
    passed = bool(value >= limit if at_least else value <= limit)
    words = f"{description}: {value:.4g} ({'≥' if at_least else '≤'} {limit:.4g})"
    return ToleranceCheck(name=name, value=value, limit=limit, at_least=at_least, passed=passed, description=words)
