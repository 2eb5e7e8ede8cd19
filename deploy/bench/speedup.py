"""Compare the latency of two engines that were measured in interleaved turns.

Each round gives a ratio of median latencies, so that a change in the speed of the machine affects both sides of it.
"""

import statistics
from collections.abc import Sequence

from ifkd.core.config import Schema

MIN_ROUNDS = 3
"""Least number of rounds of a conclusive comparison."""


class EngineSpeedup(Schema):
    """The latency of an engine relative to that of a baseline."""

    name: str
    baseline: str
    """Name of the engine that it is compared with."""
    batch: int
    """Tiles per run of both."""
    rounds: int
    """Rounds in which both were measured."""
    latency_ratio: float
    """Median over the rounds of (median latency / median latency of the baseline); below 1 the engine is faster."""
    latency_ratio_min: float
    """Smallest ratio of a round."""
    latency_ratio_max: float
    speedup: float
    """1 / latency_ratio."""
    conclusive: bool
    """Whether the same engine is faster in all rounds, of which there are at least `MIN_ROUNDS`."""


def engine_speedup(
    name: str, windows: Sequence[Sequence[int]], *, baseline: str, baseline_windows: Sequence[Sequence[int]], batch: int
) -> EngineSpeedup | None:
    """Return the speedup of an engine over a baseline, or None when no round has samples of both.

    `windows` and `baseline_windows` are the durations of both by round, nanoseconds.
    """
    rounds = [(own, other) for own, other in zip(windows, baseline_windows, strict=False) if own and other]
    if not rounds:
        return None
    ratios = [statistics.median(own) / statistics.median(other) for own, other in rounds]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return EngineSpeedup(
        name=name,
        baseline=baseline,
        batch=batch,
        rounds=len(rounds),
        latency_ratio=middle,
        latency_ratio_min=low,
        latency_ratio_max=high,
        speedup=1 / middle,
        conclusive=len(rounds) >= MIN_ROUNDS and (low > 1 or high < 1),
    )
