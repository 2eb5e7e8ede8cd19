"""The limits an engine must hold to pass for the network it came from, by precision."""

from pydantic import NonNegativeFloat

from deploy.parity.drift import Drift
from deploy.parity.matching import Matching
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.data.metrics import Metrics
from ifkd.recipe import Fraction


class Tolerances(Schema):
    """Gates of one precision; each is the worst value that passes."""

    matched_share: Fraction
    """Least share of detections with a partner, ties left out."""
    class_flips: int = 0
    """Most detections whose box stayed and whose class changed."""
    score_max: NonNegativeFloat
    """Largest score difference of any pair."""
    score_p99: NonNegativeFloat
    """Largest 99th percentile of the score differences."""
    score_factor: NonNegativeFloat
    """Largest distance from 1 of the median ratio of the scores: a common factor is no rounding."""
    iou_drift_p99: NonNegativeFloat
    """Largest 99th percentile of 1 - IoU of the pairs."""
    iou_drift_max: NonNegativeFloat
    shift_px: NonNegativeFloat
    """Largest median displacement of box centers, pixels: a common shift is no rounding."""
    mean_ap: NonNegativeFloat
    """Largest change of the mean AP."""
    ap50: NonNegativeFloat
    ap75: NonNegativeFloat


class PrecisionTolerances(Schema):
    """The gates of every precision."""

    fp32: Tolerances = Tolerances(
        matched_share=1.0,
        score_max=1e-3,
        score_p99=1e-3,
        score_factor=1e-3,
        iou_drift_p99=0.005,
        iou_drift_max=0.01,
        shift_px=0.02,
        mean_ap=0.001,
        ap50=0.001,
        ap75=0.001,
    )
    fp16: Tolerances = Tolerances(
        matched_share=0.99,
        score_max=0.05,
        score_p99=0.02,
        score_factor=0.01,
        iou_drift_p99=0.10,
        iou_drift_max=0.30,
        shift_px=0.10,
        mean_ap=0.005,
        ap50=0.01,
        ap75=0.01,
    )
    int8: Tolerances = Tolerances(
        matched_share=0.90,
        score_max=0.40,
        score_p99=0.20,
        score_factor=0.05,
        iou_drift_p99=0.40,
        iou_drift_max=0.50,
        shift_px=0.30,
        mean_ap=0.02,
        ap50=0.02,
        ap75=0.03,
    )

    def of(self, precision: Precision) -> Tolerances:
        """Return the gates of a precision."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8, "int8-cpu": self.int8}[precision]


class ToleranceCheck(Schema):
    """One gate and what came."""

    name: str
    value: float
    limit: float
    at_least: bool
    """The limit is the least value that passes, else the largest."""
    passed: bool
    meaning: str
    """The gate in words, with its figures."""


def check_tolerances(
    matching: Matching, drift: Drift | None, reference: Metrics | None, metrics: Metrics | None, limits: Tolerances
) -> list[ToleranceCheck]:
    """Return every gate with its value and whether it holds; without metrics, those of the detections alone."""
    share = matching.matched_share()
    compared = sum(matching.reference_count.values())
    gates = [
        _gate("compared", float(compared), 1.0, "detections of the reference to compare with", at_least=True),
        _gate(
            "matched_share",
            1.0 if share is None else share,
            limits.matched_share,
            "share of detections with a partner, ties left out",
            at_least=True,
        ),
        _gate("class_flips", float(len(matching.flips)), float(limits.class_flips), "boxes whose class changed"),
    ]
    if drift is not None:
        gates += [
            _gate("score_max", drift.score.max, limits.score_max, "largest score difference"),
            _gate("score_p99", drift.score.p99, limits.score_p99, "99th percentile of score differences"),
            _gate(
                "score_factor",
                abs(drift.score_ratio - 1),
                limits.score_factor,
                "distance from 1 of the median score ratio",
            ),
            _gate("iou_drift_p99", drift.iou.p99, limits.iou_drift_p99, "99th percentile of 1 - IoU"),
            _gate("iou_drift_max", drift.iou.max, limits.iou_drift_max, "largest 1 - IoU"),
            _gate(
                "shift_px",
                max(abs(drift.shift_right_px), abs(drift.shift_down_px)),
                limits.shift_px,
                "median displacement of box centers, pixels",
            ),
        ]
    if reference is None or metrics is None:
        return gates
    for name, words in (("mean_ap", "change of mAP"), ("ap50", "change of AP50"), ("ap75", "change of AP75")):
        change = abs(getattr(metrics, name) - getattr(reference, name))
        gates.append(_gate(name, change, getattr(limits, name), words))
    return gates


def _gate(name: str, value: float, limit: float, meaning: str, *, at_least: bool = False) -> ToleranceCheck:
    passed = value >= limit if at_least else value <= limit
    sign = "≥" if at_least else "≤"
    return ToleranceCheck(
        name=name,
        value=float(value),
        limit=float(limit),
        at_least=at_least,
        passed=bool(passed),
        meaning=f"{meaning}: {value:.4g} ({sign} {limit:.4g})",
    )
