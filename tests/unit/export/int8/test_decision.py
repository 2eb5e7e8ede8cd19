"""The rule by which an INT8 file is worth it, on given figures: nothing here is timed."""

from typing import Any

import pytest

from export.bundle.manifest import Precision, QuantizationDecision, Speed, Speedup
from export.int8.benchmark import speedup
from export.int8.decision import LARGEST_CLASS_LOSS, LEAST_SPEED_UP, decide


def verdict(**changes: Any) -> QuantizationDecision:
    facts: dict[str, Any] = {
        "against": "fp16",
        "map_loss": 0.002,
        "per_class_loss": {"ferry": 0.01, "tug": -0.01},
        "max_map_loss": 0.005,
        "speed_up": {
            "fp16": Speedup(median=2.5, least=2.1, most=2.9),
            "fp32": Speedup(median=2.2, least=2.0, most=2.4),
        },
    }
    return decide(**{**facts, **changes})


def test_a_faster_file_that_keeps_its_accuracy_is_worth_it_and_both_are_told() -> None:
    found = verdict()
    assert found.worth_it is True
    for part in ("mAP changes by -0.20 points", "AP of ferry, the class that loses most, by -1.00",
                 "2.50 times as fast as fp16 (rounds 2.10 to 2.90)", "2.20 times as fast as fp32"):  # fmt: skip
        assert part in found.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"map_loss": 0.0051}, "loses 0.51 points of mAP, more than 0.5"),
        ({"per_class_loss": {"ferry": LARGEST_CLASS_LOSS + 0.001, "tug": 0.0}}, "ferry loses 2.10 points of AP"),
        ({"speed_up": {"fp16": Speedup(median=LEAST_SPEED_UP - 0.01, least=1.05, most=1.2)}}, "1.09 times as fast as"),
        ({"speed_up": {"fp16": Speedup(median=1.5, least=0.9, most=2.0)}}, r"rounds 0.90 to 2.00"),
    ],
)
def test_one_reason_against_it_is_enough_and_is_the_one_told(changes: dict[str, Any], reason: str) -> None:
    found = verdict(**changes)
    assert found.worth_it is False
    assert reason in found.reason
    assert ";" not in found.reason


def test_faster_than_fp16_and_not_than_fp32_is_not_worth_it() -> None:
    speeds: dict[Precision, Speedup] = {
        "fp16": Speedup(median=2.5, least=2.1, most=2.9),
        "fp32": Speedup(median=1.0, least=0.9, most=1.1),
    }
    found = verdict(speed_up=speeds)
    assert (found.worth_it, found.reason) == (False, "1.00 times as fast as fp32 (rounds 0.90 to 1.10)")


def test_without_speed_it_is_undecided_unless_accuracy_decides() -> None:
    found = verdict(speed_up={})
    assert found.worth_it is None
    assert "speed is unmeasured" in found.reason
    assert verdict(speed_up={}, map_loss=0.1).worth_it is False


def test_a_detector_without_scored_classes_is_judged_by_map_and_speed() -> None:
    assert verdict(per_class_loss={}).worth_it is True


def test_speed_ups_are_taken_round_by_round() -> None:
    own = Speed(median_ms=10.0, rounds_ms=(10.0, 20.0, 10.0))
    other = Speed(median_ms=30.0, rounds_ms=(30.0, 50.0, 20.0))
    assert speedup(own, other) == Speedup(median=2.5, least=2.0, most=3.0)
