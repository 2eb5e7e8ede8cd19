import itertools
import statistics

import numpy as np
import pytest

from deploy.bench.latency import (
    GroundCoverage,
    TimingConfig,
    judge_stability,
    measure_latency,
    sample_spread,
    summarize,
    timed_engine,
)
from deploy.engines.engine import EngineInfo, FakeEngine
from ifkd.core.detections import Detections
from ifkd.core.errors import UsageError
from ifkd.core.timing import TimingSamples, time_in_turns

QUICK = TimingConfig(warmup_s=0.0, warmup_runs=2, min_s=1e-9, min_samples=6, rounds=3)


def fake(name="a", *, fail_at=None, log=None, max_batch=8):
    calls = itertools.count()

    def find(tile):
        if log is not None:
            log.append((name, int(tile[0, 0, 0])))
        if next(calls) == fail_at:
            raise RuntimeError("out of memory")
        return Detections.empty()

    info = EngineInfo("fake", "1", "cpu", "fp32", name, "0" * 64, (4, 4), max_batch, 3, ("ship",))
    return FakeEngine(info, find)


def tiles(n):
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, 4, 4)).copy()


def test_percentiles_are_those_of_the_standard_library():
    values = np.random.default_rng(1).gamma(3.0, 2.0, 257)
    cuts = statistics.quantiles(values.tolist(), n=100, method="inclusive")
    found = sample_spread(values)
    assert [found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms] == pytest.approx(
        [cuts[49], cuts[89], cuts[94], cuts[98]]
    )
    assert (found.min_ms, found.max_ms) == (values.min(), values.max())
    assert found.mean_ms == pytest.approx(statistics.fmean(values))


def test_rates_follow_from_the_samples():
    samples = TimingSamples([9], [[100_000_000, 300_000_000], [200_000_000]])  # 3 runs of 4 tiles in 0.6 s
    ground = GroundCoverage((500, 1000), 100, 2.0)
    found = summarize(samples, batch=4, timing=TimingConfig(), ground=ground)
    assert found.runs == 3
    assert found.per_batch.p50_ms == pytest.approx(200)
    assert found.per_tile.p50_ms == pytest.approx(50)
    assert found.throughput.tiles_per_s == pytest.approx(20)
    assert found.throughput.mpix_per_s == pytest.approx(10)
    # a tile adds 400 x 900 pixels of 4 m2 = 1.44 km2; 72 000 tiles an hour
    assert found.throughput.km2_per_h == pytest.approx(72_000 * 1.44)
    assert found.windows_ns == [[100_000_000, 300_000_000], [200_000_000]]
    assert found.warmup_ns == [9]


def test_without_a_sample_distance_there_are_no_square_kilometers():
    samples = TimingSamples([], [[1, 1]])
    found = summarize(samples, batch=1, timing=TimingConfig(), ground=GroundCoverage((4, 4)))
    assert found.throughput.km2_per_h is None


@pytest.mark.parametrize(
    ("windows", "stable", "said"),
    [
        ([[100, 101, 99]] * 4, True, "within 0.0%"),
        ([[100] * 3, [100] * 3, [109] * 3], True, "within 9.0%"),
        ([[100] * 3, [100] * 3, [111] * 3], False, "differ by 11.0%"),
        ([[150] * 3, [100] * 3, [100] * 3, [100] * 3], True, "within"),  # only the last three windows count
        ([[100, 100, 200]] * 3, False, "variation is 35.4%"),
        ([[100], [100]], False, "only 2 of the 3"),
        ([], False, "only 0 of the 3"),
        ([[100], [], [100]], False, "only 2 of the 3"),
    ],
)
def test_three_windows_decide_on_stability(windows, stable, said):
    verdict = judge_stability(windows, TimingConfig())
    assert verdict.stable is stable
    assert said in verdict.reason
    assert "10%" in verdict.rule
    assert "20%" in verdict.rule


def test_engines_take_turns_and_keep_all_samples():
    log = []
    both = [timed_engine(name, fake(name, log=log), tiles(2), batch=1) for name in ("a", "b")]
    list(time_in_turns(both, QUICK.turns))
    turns = [name for name, _ in itertools.groupby(name for name, _ in log)]
    assert turns == ["a", "b"] * 4  # warm-up and three rounds
    for one in both:
        assert [len(window) for window in one.samples.windows_ns] == [2, 2, 2]
        assert len(one.samples.warmup_ns) == 2
        assert all(duration > 0 for duration in one.samples.all_ns)
    assert len(log) == 2 * (2 + 6)


def test_batches_cycle_through_all_tiles():
    log = []
    measure_latency(fake(log=log), tiles(5), batch=2, timing=QUICK)
    assert [tile for _, tile in log[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
    log.clear()
    measure_latency(fake(log=log), tiles(2), batch=3, timing=QUICK)
    assert [tile for _, tile in log[:3]] == [0, 1, 0]


def test_an_engine_that_fails_takes_no_further_turn_and_keeps_its_samples():
    bad = timed_engine("bad", fake(fail_at=5), tiles(1), batch=1)
    good = timed_engine("good", fake(), tiles(1), batch=1)
    list(time_in_turns([bad, good], QUICK.turns))
    assert bad.failure == "RuntimeError: out of memory"
    assert len(bad.samples.all_ns) == 3
    assert good.failure is None
    assert len(good.samples.all_ns) == 6


def test_measured_alone_a_failure_is_raised():
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_latency(fake(fail_at=0), tiles(1), batch=1, timing=QUICK)


@pytest.mark.parametrize(("n", "batch"), [(0, 1), (1, 0)])
def test_nothing_to_measure_is_refused(n, batch):
    with pytest.raises(UsageError, match="at least 1"):
        timed_engine("x", fake(), tiles(n), batch=batch)
