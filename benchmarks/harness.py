"""Check the latency measurement: its overhead per sample, and its error for a known duration.

    python benchmarks/harness.py

Exit code 1 if the overhead is above 1 % of a call of 1 ms, or the error above 2 % of a known duration. Both use the low
end of many runs, where a systematic error is visible and other load on the machine has the least effect.
"""

import statistics
import sys
import time

import numpy as np

from deploy.bench.latency import TimingConfig, measure_latency
from deploy.engines.engine import EngineInfo, FakeEngine
from ifkd.core.detections import Array, Detections

SIDE = 32
CHUNKS = 60
CALLS = 10
WORK_MS = 1.0
KNOWN_MS = 20.0


def engine_taking(milliseconds: float) -> FakeEngine:
    """Return an engine that spins for `milliseconds` per tile; sleeping would be less exact."""

    def find(_: Array) -> Detections:
        end = time.perf_counter_ns() + milliseconds * 1e6
        while time.perf_counter_ns() < end:
            pass
        return Detections.empty()

    info = EngineInfo("fake", "0", "CPU", "fp32", "none", "0" * 64, (SIDE, SIDE), 1, 1, ("object",))
    return FakeEngine(info, find)


def bare_ms(engine: FakeEngine, tiles: Array) -> float:
    """Return the time of a call in a bare loop, milliseconds: the minimum of many loops without clock reads."""
    best = float("inf")
    for _ in range(CHUNKS):
        started = time.perf_counter_ns()
        for _ in range(CALLS):
            engine.infer(tiles)
        best = min(best, (time.perf_counter_ns() - started) / 1e6 / CALLS)
    return best


def harness_ms(engine: FakeEngine, tiles: Array) -> float:
    """Return the time of a call as `measure_latency` measures it, milliseconds: the minimum of as many windows."""
    timing = TimingConfig(warmup_s=0.1, min_s=1e-9, min_samples=CHUNKS * CALLS, rounds=CHUNKS)
    windows = measure_latency(engine, tiles, batch=1, timing=timing).windows_ns
    return min(statistics.fmean(window) for window in windows) / 1e6


def main() -> int:
    """Measure overhead and error."""
    tiles = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    short = engine_taking(WORK_MS)
    ratios = [harness_ms(short, tiles) / bare_ms(short, tiles) - 1 for _ in range(5)]
    added = statistics.median(ratios)
    around = f"five pairs {min(ratios):+.2%} to {max(ratios):+.2%}"
    print(f"added to a call of {WORK_MS:g} ms: {added:+.2%} (limit 1 %, {around})")
    timing = TimingConfig(warmup_s=0.1, min_s=2.0, min_samples=100, rounds=5)
    samples = measure_latency(engine_taking(KNOWN_MS), tiles, batch=1, timing=timing).all_ns
    found = float(np.percentile(samples, 10)) / 1e6  # the low end: other load only adds time
    error = found / KNOWN_MS - 1
    middle = statistics.median(samples) / 1e6
    print(f"a call of {KNOWN_MS:g} ms is measured as {found:.3f} ms: {error:+.2%} (limit 2 %; median {middle:.3f} ms)")
    return int(abs(added) > 0.01 or abs(error) > 0.02)


if __name__ == "__main__":
    sys.exit(main())
