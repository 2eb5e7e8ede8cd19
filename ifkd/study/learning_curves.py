"""Learning curves of a study's runs, read from their metrics.jsonl."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.training.metrics_logger import read_metrics

MAX_POINTS = 60
"""Points of a loss curve; neighboring steps are averaged."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean, minimum and maximum over runs of one quantity by epoch or step."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def has_positive(self) -> bool:
        """True if any mean is above 0, so that a logarithmic axis can show it."""
        return any(value > 0 for value in self.mean)


@dataclass(frozen=True, slots=True)
class LearningCurves:
    """Curves of one variant over its finished seeds."""

    validation: Curve
    """mAP on the validation split by epoch, percentage points."""
    losses: dict[str, Curve]
    """Weighted loss terms by step: `task` is the sum of the detector's own terms, the others are the method's."""


def read_learning_curves(run_folders: Sequence[Path]) -> LearningCurves:
    """Return the curves of one variant's runs; an incomplete last line is ignored."""
    runs = [read_metrics(folder) for folder in run_folders]
    losses = [_losses_by_step(entries) for entries in runs]
    terms = dict.fromkeys(term for run in losses for term in run)
    curves = {term: downsample(average_runs([run[term] for run in losses if term in run])) for term in terms}
    validations = [[entry for entry in entries if "validation" in entry] for entries in runs]
    maps = [{float(one["epoch"]): one["validation"]["mean_ap"] for one in entries} for entries in validations]
    points = [{epoch: 100 * value for epoch, value in one.items() if value is not None} for one in maps]
    return LearningCurves(average_runs(points), curves)


def average_runs(runs: Sequence[Mapping[float, float]]) -> Curve:
    """Return the curve of several runs, given as x -> value; each x counts the runs that have it."""
    xs = sorted({x for run in runs for x in run})
    values = [[run[x] for run in runs if x in run] for x in xs]
    return Curve(tuple(xs), tuple(map(statistics.fmean, values)), tuple(map(min, values)), tuple(map(max, values)))


def downsample(curve: Curve) -> Curve:
    """Return a curve of at most MAX_POINTS points, each the mean of neighboring points."""
    size = max(1, -(-len(curve.x) // MAX_POINTS))
    columns, starts = (curve.x, curve.mean, curve.low, curve.high), range(0, len(curve.x), size)
    return Curve(*(tuple(statistics.fmean(values[start : start + size]) for start in starts) for values in columns))


def _losses_by_step(entries: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    losses: dict[str, dict[float, float]] = defaultdict(dict)
    for entry in entries:
        for key, value in entry.items():
            kind, _, term = key.partition("/")
            step = float(entry.get("iteration", 0))
            if kind == "task":
                losses["task"][step] = losses["task"].get(step, 0.0) + value
            elif kind == "method":
                losses[term][step] = value
    return losses
