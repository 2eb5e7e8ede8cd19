"""How much faster one engine is than another, from turns that they took side by side.

Each round gives a ratio of medians, and what slowed the machine in that round slowed both. The median of the rounds'
ratios is the figure; their smallest and largest say how far to trust it.
"""

import statistics
from collections.abc import Sequence

from ifkd.core.config import Schema


class Speedup(Schema):
    """The latency of one engine over that of another, both measured in turns."""

    name: str
    """The engine in question."""
    against: str
    """The engine it is compared with."""
    batch: int
    """Tiles per run of both."""
    rounds: int
    """Rounds in which both were measured."""
    ratio: float
    """Median over the rounds of (its median latency / the other's); below 1 it is faster."""
    low: float
    """Smallest ratio of a round."""
    high: float
    """Largest ratio of a round."""
    speed_up: float
    """1 / ratio."""
    clear: bool
    """All rounds agree on which is faster."""


def speedup_of(
    name: str, windows: Sequence[Sequence[int]], *, against: str, others: Sequence[Sequence[int]], batch: int
) -> Speedup | None:
    """Return the ratio of two engines measured in turns, or None when no round has both.

    Args:
        name: The engine in question.
        windows: Its durations by round, nanoseconds.
        against: The engine to compare with.
        others: Its durations by round.
        batch: Tiles per run of both.
    """
    ratios = [
        statistics.median(ours) / statistics.median(theirs)
        for ours, theirs in zip(windows, others, strict=False)
        if ours and theirs
    ]
    if not ratios:
        return None
    middle = statistics.median(ratios)
    return Speedup(
        name=name,
        against=against,
        batch=batch,
        rounds=len(ratios),
        ratio=middle,
        low=min(ratios),
        high=max(ratios),
        speed_up=1 / middle,
        clear=min(ratios) > 1 or max(ratios) < 1,
    )
