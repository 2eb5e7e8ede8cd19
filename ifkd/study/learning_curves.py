"""Learning curves of a study's runs, from their metrics.jsonl."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.training.metrics_logger import LOG

MOST_POINTS = 60
"""Of a loss curve; neighboring steps are averaged to as many."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over epochs or steps: mean, least and greatest over runs."""

    places: tuple[float, ...]
    mean: tuple[float, ...]
    least: tuple[float, ...]
    greatest: tuple[float, ...]

    @property
    def is_line(self) -> bool:
        """Whether there are places to join."""
        return len(self.places) > 1

    @property
    def is_felt(self) -> bool:
        """Whether it is ever above 0, as a loss must be to be drawn on a logarithmic axis."""
        return any(value > 0 for value in self.mean)


@dataclass(frozen=True, slots=True)
class Learning:
    """How a variant learned, over the seeds that are finished."""

    validation: Curve
    """mAP on the validation part by epoch, points."""
    losses: dict[str, Curve]
    """Each weighted term by step: `task` is the sum of the detector's own, the others are the method's."""


def learning(folders: Sequence[Path]) -> Learning:
    """Return the curves of runs of one variant, whose folders these are; a torn last line is left out."""
    entries = [_entries(folder / LOG) for folder in folders]
    validation = over_runs([_validation(told) for told in entries])
    losses = [_losses(told) for told in entries]
    names = list(dict.fromkeys(name for run in losses for name in run))
    terms = {name: over_runs([run[name] for run in losses if name in run]) for name in names}
    return Learning(validation, {name: thinned(curve) for name, curve in terms.items()})


def over_runs(runs: Sequence[dict[float, float]]) -> Curve:
    """Return place -> value of several runs as one curve; a place counts the runs that have it."""
    places = sorted({place for run in runs for place in run})
    values = [[run[place] for run in runs if place in run] for place in places]
    return Curve(
        tuple(places),
        tuple(statistics.fmean(some) for some in values),
        tuple(min(some) for some in values),
        tuple(max(some) for some in values),
    )


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """Return a curve of at most so many points, each the mean of neighbors: their places and their values."""
    size = max(1, -(-len(curve.places) // most))
    starts = range(0, len(curve.places), size)

    def means(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(statistics.fmean(values[first : first + size]) for first in starts)

    return Curve(means(curve.places), means(curve.mean), means(curve.least), means(curve.greatest))


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _validation(entries: Sequence[dict[str, Any]]) -> dict[float, float]:
    return {float(entry["epoch"]): 100 * entry["validation"]["mean_ap"] for entry in entries if "validation" in entry}


def _losses(entries: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    for entry in entries:
        if "validation" in entry:
            continue
        step = float(entry["iteration"])
        for key, value in entry.items():
            kind, _, term = key.partition("/")
            if kind == "task":
                task = found.setdefault("task", {})
                task[step] = task.get(step, 0.0) + value
            elif kind == "method":
                found.setdefault(term, {})[step] = value
    return found
