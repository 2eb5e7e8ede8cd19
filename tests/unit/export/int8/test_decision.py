"""The decision on an INT8 file, from given accuracies and latencies."""

from typing import Any

import pytest

from export.bundle.manifest import Int8Speedup, Precision, QuantizationDecision
from export.int8.decision import MAX_CLASS_LOSS, MIN_SPEEDUP, decide
from ifkd.data.metrics import ClassMetrics, Metrics


def metrics(mean_ap: float | None = 0.4, *, objects: int = 200, **of_class: int) -> Metrics:
    """Return the metrics of the baseline; `of_class` are objects by class, by default 100."""
    per_class = {
        name: ClassMetrics(mean_ap=mean_ap, ap50=mean_ap, ap75=mean_ap, objects=of_class.get(name, 100))
        for name in ("ferry", "tug")
    }
    return Metrics(mean_ap=mean_ap, ap50=mean_ap, ap75=mean_ap, images=30, objects=objects, per_class=per_class)


def decision(**changes: Any) -> QuantizationDecision:
    arguments: dict[str, Any] = {
        "baseline": "fp16",
        "metrics": metrics(),
        "map_loss": 0.002,
        "per_class_loss": {"ferry": 0.01, "tug": -0.01},
        "max_map_loss": 0.005,
        "speedup": {
            "fp16": Int8Speedup(median=2.5, min=2.1, max=2.9),
            "fp32": Int8Speedup(median=2.2, min=2.0, max=2.4),
        },
    }
    return decide(**{**arguments, **changes})


def test_a_fast_and_accurate_file_is_recommended_with_both_reasons() -> None:
    found = decision()
    assert found.recommended is True
    for part in ("mAP changes by -0.20 points", "AP of ferry, the class with the largest loss, changes by -1.00",
                 "2.50 times as fast as fp16 (rounds 2.10 to 2.90)", "2.20 times as fast as fp32"):  # fmt: skip
        assert part in found.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"map_loss": 0.0051}, "mAP decreases by 0.51 points, more than 0.5"),
        ({"per_class_loss": {"ferry": MAX_CLASS_LOSS + 0.001, "tug": 0.0}}, "AP of ferry decreases by 2.10 points"),
        ({"speedup": {"fp16": Int8Speedup(median=MIN_SPEEDUP - 0.01, min=1.05, max=1.2)}}, "1.09 times as fast as"),
        ({"speedup": {"fp16": Int8Speedup(median=1.5, min=0.9, max=2.0)}}, r"rounds 0.90 to 2.00"),
    ],
)
def test_one_reason_against_the_file_is_enough(changes: dict[str, Any], reason: str) -> None:
    found = decision(**changes)
    assert found.recommended is False
    assert reason in found.reason
    assert ";" not in found.reason


def test_a_file_slower_than_fp32_is_not_recommended() -> None:
    speedup: dict[Precision, Int8Speedup] = {
        "fp16": Int8Speedup(median=2.5, min=2.1, max=2.9),
        "fp32": Int8Speedup(median=1.0, min=0.9, max=1.1),
    }
    found = decision(speedup=speedup)
    assert (found.recommended, found.reason) == (False, "1.00 times as fast as fp32 (rounds 0.90 to 1.10)")


def test_without_latency_only_accuracy_decides() -> None:
    found = decision(speedup={})
    assert found.recommended is None
    assert "latency is not measured" in found.reason
    assert decision(speedup={}, map_loss=0.1).recommended is False


def test_a_detector_without_class_metrics_is_decided_by_map_and_speedup() -> None:
    assert decision(per_class_loss={}).recommended is True


@pytest.mark.parametrize(
    ("baseline", "reason"),
    [
        (metrics(0.0), "fp16 has a mAP of 0.000 on 30 validation tiles with 200 objects, below 0.05"),
        (metrics(0.9, objects=19), "30 validation tiles with 19 objects, fewer than 20, show no loss"),
        (metrics(None, objects=0), "with 0 objects"),
    ],
)
def test_there_is_no_decision_on_a_baseline_that_detects_too_little(baseline: Metrics, reason: str) -> None:
    for loss in (0.0, 0.3, None):
        found = decision(metrics=baseline, map_loss=loss)
        assert found.recommended is None
        assert reason in found.reason
        assert "mAP changes" not in found.reason
    slow = {"fp16": Int8Speedup(median=0.5, min=0.4, max=0.6)}
    assert decision(metrics=baseline, speedup=slow).recommended is False


def test_a_class_with_few_objects_decides_nothing() -> None:
    loss = {"ferry": 0.01, "tug": 0.5}
    assert decision(per_class_loss=loss).recommended is False
    found = decision(per_class_loss=loss, metrics=metrics(tug=9))
    assert found.recommended is True
    assert "AP of ferry" in found.reason
