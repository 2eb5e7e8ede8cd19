"""Decision whether to use an INT8 file: its accuracy and speed against the floating-point files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.bundle.manifest import Int8Speedup, Precision, QuantizationDecision, QuantizationRecord
from export.int8.benchmark import measure_latency_ms, speedup_over
from export.int8.calibration_tiles import ValidationTiles
from export.int8.sensitivity import map_loss_of, per_class_loss_of
from ifkd.core.environment import usable_cores
from ifkd.data.metrics import Metrics

MIN_SPEEDUP = 1.1
MAX_CLASS_LOSS = 0.02
"""Largest loss of AP of a class."""
MIN_OBJECTS, MIN_CLASS_OBJECTS, MIN_MAP = 20, 10, 0.05
"""Least number of objects, of all classes and of one, and least mAP of the baseline, for a loss to have a meaning."""


@dataclass(frozen=True, slots=True)
class FloatBaseline:
    """The floating-point file that would be used without INT8, and its losses relative to the FP32 file."""

    precision: Precision
    paths: Mapping[Precision, Path]
    """All floating-point files by precision."""
    tiles: ValidationTiles
    metrics: Metrics
    map_loss: float | None
    per_class_loss: Mapping[str, float]

    @classmethod
    def measure(cls, paths: Mapping[Precision, Path], tiles: ValidationTiles) -> "FloatBaseline":
        """Measure the FP16 file, or the FP32 file if there is no other."""
        precision: Precision = "fp16" if "fp16" in paths else "fp32"
        reference = tiles.evaluate(paths["fp32"])
        metrics = reference if precision == "fp32" else tiles.evaluate(paths[precision])
        losses = map_loss_of(reference, metrics), per_class_loss_of(reference, metrics)
        return cls(precision, paths, tiles, metrics, *losses)

    def decide(self, path: Path, record: QuantizationRecord, precision: Precision) -> QuantizationDecision:
        """Return the decision on an INT8 file; the losses in its record are relative to FP32."""
        # The file for TensorRT also runs on a CPU, but its latency there is irrelevant.
        timed = precision == "int8-cpu"
        latency = measure_latency_ms({precision: path, **self.paths}, self.tiles.pixels[0]) if timed else {}
        speedup = {name: speedup_over(latency[precision], latency[name]) for name in self.paths if timed}
        unknown = record.map_loss is None or self.map_loss is None
        decision = decide(
            baseline=self.precision,
            metrics=self.metrics,
            map_loss=None if unknown else record.map_loss - self.map_loss,  # type: ignore[operator]
            per_class_loss={name: loss - self.per_class_loss[name] for name, loss in record.per_class_loss.items()},
            max_map_loss=record.max_map_loss,
            speedup=speedup,
        )
        return decision.model_copy(update={"latency": latency, "threads": usable_cores() if timed else None})


def decide(
    *,
    baseline: Precision,
    metrics: Metrics,
    map_loss: float | None,
    per_class_loss: Mapping[str, float],
    max_map_loss: float,
    speedup: Mapping[Precision, Int8Speedup],
) -> QuantizationDecision:
    """Return the decision on an INT8 file; the losses are relative to the baseline, whose metrics are `metrics`.

    The file is recommended if mAP and the AP of each class with enough objects decrease by no more than their limits,
    and if it is faster than every floating-point file, also in its slowest round. Where the baseline detects too little
    to judge the accuracy, or without a latency measurement, the decision is at best None.
    """
    obstacle = _missing_evidence(baseline, metrics)
    against, neutral = (
        ([], [obstacle])
        if obstacle or map_loss is None
        else _accuracy(metrics, map_loss, per_class_loss, max_map_loss=max_map_loss)
    )
    for name, one in speedup.items():
        text = f"{one.median:.2f} times as fast as {name} (rounds {one.min:.2f} to {one.max:.2f})"
        (neutral if one.median >= MIN_SPEEDUP and one.min > 1 else against).append(text)
    if not speedup:
        neutral.append("its latency is not measured, because it runs on a GPU")
    return QuantizationDecision(
        baseline=baseline,
        map_loss=map_loss,
        per_class_loss=dict(per_class_loss),
        speedup=dict(speedup),
        recommended=False if against else None if obstacle or not speedup else True,
        reason="; ".join(against or neutral),
    )


def _missing_evidence(baseline: Precision, metrics: Metrics) -> str:
    """Return why a loss of accuracy relative to the baseline has no meaning; empty if it has one."""
    data = f"{metrics.images} validation tiles with {metrics.objects} objects"
    if metrics.objects < MIN_OBJECTS:
        return f"its accuracy is unknown: {data}, fewer than {MIN_OBJECTS}, show no loss"
    if metrics.mean_ap is None or metrics.mean_ap < MIN_MAP:
        return (
            f"its accuracy is unknown: {baseline} has a mAP of {metrics.mean_ap or 0:.3f} on {data}, below {MIN_MAP:g}"
        )
    return ""


def _accuracy(
    metrics: Metrics, map_loss: float, per_class_loss: Mapping[str, float], *, max_map_loss: float
) -> tuple[list[str], list[str]]:
    """Return the reasons of accuracy against a file, and those that are not."""
    against, neutral = [], [f"mAP changes by {-100 * map_loss:+.2f} points"]
    if map_loss > max_map_loss:
        against.append(f"mAP decreases by {100 * map_loss:.2f} points, more than {100 * max_map_loss:g}")
    judged = {k: v for k, v in per_class_loss.items() if metrics.per_class[k].objects >= MIN_CLASS_OBJECTS}
    if judged:
        worst, loss = max(judged.items(), key=lambda item: item[1])
        neutral.append(f"AP of {worst}, the class with the largest loss, changes by {-100 * loss:+.2f}")
        if loss > MAX_CLASS_LOSS:
            against.append(f"AP of {worst} decreases by {100 * loss:.2f} points")
    return against, neutral
