import itertools

import numpy as np
import pytest
from fakes import report_inputs as parts

import ifkd.core.timing as clockwork
from deploy.bench.bench_result import compute_speedups
from deploy.bench.speedup import engine_speedup
from ifkd.core.timing import TimedCall, TurnLimits, time_in_turns


class Clock:
    """A clock that only the timed functions advance."""

    def __init__(self):
        self.now = 1_000

    def perf_counter_ns(self):
        return self.now


def test_a_slow_spell_affects_both_engines(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(clockwork, "time", clock)
    spell = np.repeat([1.0, 1.0, 3.0, 3.0, 1.0, 1.0], 5)

    def advance(duration):
        clock.now += int(duration)

    a, b = (
        TimedCall(name, advance, itertools.chain([factor * 1e6], factor * 1e6 * spell))
        for name, factor in (("a", 2.0), ("b", 1.0))
    )
    list(time_in_turns([a, b], TurnLimits(rounds=6, min_runs=5, min_s=1e-9)))
    speedup = engine_speedup("b", b.samples.windows_ns, baseline="a", baseline_windows=a.samples.windows_ns, batch=1)
    assert (speedup.latency_ratio, speedup.latency_ratio_min, speedup.latency_ratio_max) == (0.5, 0.5, 0.5)
    assert speedup.speedup == 2.0
    assert speedup.conclusive
    assert speedup.rounds == 6


def test_a_speedup_on_which_rounds_disagree_is_not_conclusive():
    speedup = engine_speedup("b", [[90], [110], [100]], baseline="a", baseline_windows=[[100]] * 3, batch=1)
    assert (speedup.latency_ratio_min, speedup.latency_ratio, speedup.latency_ratio_max) == (0.9, 1.0, 1.1)
    assert not speedup.conclusive
    assert engine_speedup("b", [[], [1]], baseline="a", baseline_windows=[[1], []], batch=1) is None


def test_two_rounds_are_too_few_to_be_conclusive():
    windows = [[90], [91], [92]]
    two, three = (
        engine_speedup("b", windows[:count], baseline="a", baseline_windows=[[100]] * 3, batch=1) for count in (2, 3)
    )
    assert (two.conclusive, three.conclusive) == (False, True)


def test_the_reference_is_the_baseline_of_all_engines():
    cells = [cell for cell in parts.bench().cells if cell.backend == "onnxruntime"]
    assert {one.baseline for one in compute_speedups(cells)} == {"onnxruntime fp32"}
    teacher = cells[0].model_copy(update={"role": "reference", "backend": "torch", "latency": parts.latency(1, 152.0)})
    speedups = [one for one in compute_speedups([*cells, teacher]) if one.batch == 1]
    assert {one.baseline for one in speedups} == {"reference torch fp32"}
    fp32 = next(one for one in speedups if one.name == "onnxruntime fp32")
    assert fp32.speedup == pytest.approx(152 / 38, rel=0.05)
    assert fp32.conclusive
