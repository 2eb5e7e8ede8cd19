"""Time functions in turns (A B C, A B C, …), so that a change in the speed of the machine affects all of them."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Number and minimum length of turns."""

    rounds: int
    min_runs: int
    """Minimum number of runs in a turn."""
    min_s: float
    """Minimum duration of a turn, seconds."""
    warmup_runs: int = 1
    """Minimum number of runs before the first turn; they are not part of the samples."""
    warmup_s: float = 0.0
    """Minimum duration of the warm-up, seconds."""


@dataclass(slots=True)
class TimingSamples:
    """The duration of every run of a function, nanoseconds, in the order taken."""

    warmup_ns: list[int] = field(default_factory=list)
    windows_ns: list[list[int]] = field(default_factory=list)
    """A list for each turn."""

    @property
    def all_ns(self) -> list[int]:
        """The runs of all turns, without the warm-up."""
        return list(itertools.chain.from_iterable(self.windows_ns))


@dataclass(slots=True)
class TimedCall:
    """A function that is timed."""

    name: str
    function: Callable[[Any], object]
    arguments: Iterator[Any]
    """The argument of each run; it does not end."""
    samples: TimingSamples = field(default_factory=TimingSamples)
    failure: str | None = None
    """Exception that ended its turns."""


def time_in_turns(calls: Sequence[TimedCall], limits: TurnLimits, *, raise_errors: bool = False) -> Iterator[TimedCall]:
    """Warm up every call, then run the rounds; yield a call after each of its turns.

    Samples are appended while the turns run, so that an interruption loses none of them. A call that raises takes no
    further turn and keeps the exception in `failure`, unless `raise_errors` is set.
    """
    for turn in (_warm_up, *[_take_turn] * limits.rounds):
        for call in calls:
            if call.failure is not None:
                continue
            gc.collect()  # garbage of one function must not slow down the next
            try:
                turn(call, limits)
            except Exception as error:
                if raise_errors:
                    raise
                call.failure = f"{type(error).__name__}: {error}"
            yield call


def _warm_up(call: TimedCall, limits: TurnLimits) -> None:
    _run(call, call.samples.warmup_ns, limits.warmup_runs, limits.warmup_s)


def _take_turn(call: TimedCall, limits: TurnLimits) -> None:
    window: list[int] = []
    call.samples.windows_ns.append(window)
    _run(call, window, limits.min_runs, limits.min_s)


def _run(call: TimedCall, durations: list[int], min_runs: int, min_s: float) -> None:
    end = time.perf_counter_ns() + min_s * 1e9
    while len(durations) < min_runs or time.perf_counter_ns() < end:
        argument = next(call.arguments)
        started = time.perf_counter_ns()
        call.function(argument)
        durations.append(time.perf_counter_ns() - started)
