"""The loop that times functions in turns: durations on a fake clock are found again exactly."""

import itertools

import numpy as np

import ifkd.core.timing as module
from ifkd.core.timing import TimedCall, TurnLimits, time_in_turns


class Clock:
    """A clock that only the timed functions advance."""

    def __init__(self):
        self.now = 1_000

    def perf_counter_ns(self):
        return self.now


def timed(name, clock, durations):
    def advance(duration):
        clock.now += duration

    return TimedCall(name, advance, itertools.chain(durations))


def test_known_durations_are_measured_exactly(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    known = np.random.default_rng(4).integers(1_000_000, 9_000_000, 400).tolist()
    call = timed("a", clock, known)
    list(time_in_turns([call], TurnLimits(rounds=6, min_runs=5, min_s=0.1, warmup_runs=3, warmup_s=0.01)))
    samples = call.samples
    taken = [*samples.warmup_ns, *samples.all_ns]
    assert taken == known[: len(taken)]
    assert len(samples.warmup_ns) >= 3
    assert sum(samples.warmup_ns) >= 0.01e9
    assert len(samples.windows_ns) == 6
    assert all(len(window) >= 5 and sum(window) >= 0.1e9 for window in samples.windows_ns)


def test_calls_take_turns(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    calls = [timed(name, clock, itertools.repeat(1_000_000)) for name in ("a", "b")]
    order = [call.name for call in time_in_turns(calls, TurnLimits(rounds=3, min_runs=2, min_s=0.0))]
    assert order == ["a", "b"] * 4  # warm-up and three rounds
    assert [call.samples.windows_ns for call in calls] == [[[1_000_000] * 2] * 3] * 2


def test_a_call_that_fails_takes_no_further_turn():
    def fail(value):
        if value == 3:
            raise ValueError("three")

    bad = TimedCall("bad", fail, iter(range(10)))
    good = TimedCall("good", abs, itertools.repeat(1))
    order = [call.name for call in time_in_turns([bad, good], TurnLimits(rounds=3, min_runs=2, min_s=0.0))]
    assert order == ["bad", "good", "bad", "good", "bad", "good", "good"]
    assert bad.failure == "ValueError: three"
    assert [len(window) for window in bad.samples.windows_ns] == [2, 0]
    assert len(good.samples.all_ns) == 6
