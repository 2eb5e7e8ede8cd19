"""CPU latency of ONNX files, measured in turns so that other load on the machine affects all files equally."""

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from export.bundle.manifest import Int8Speedup, Precision, TileLatency
from export.precision.ort_session import open_session
from ifkd.core.detections import Array
from ifkd.core.environment import usable_cores
from ifkd.core.timing import TimedCall, TurnLimits, time_in_turns

ROUNDS = 6
TURNS = TurnLimits(rounds=ROUNDS, min_runs=2, min_s=0.2)


def measure_latency_ms(paths: Mapping[Precision, Path], tile: Array) -> dict[Precision, TileLatency]:
    """Return the latency of each ONNX file for one tile, uint8 [3, height, width], on all cores of this process.

    Raises:
        EngineError: ONNX Runtime cannot load a file.
    """
    inputs = itertools.repeat({"tiles": tile[None]})
    threads = usable_cores()  # ONNX Runtime's own choice ignores the affinity of the process
    runs = {name: partial(open_session(path, threads=threads, spin=True).run, None) for name, path in paths.items()}
    calls = {name: TimedCall(name, run, inputs) for name, run in runs.items()}
    for _ in time_in_turns(list(calls.values()), TURNS, raise_errors=True):
        pass
    result = {}
    for name, call in calls.items():
        rounds_ms = tuple(round(float(np.median(window)) / 1e6, 4) for window in call.samples.windows_ns)
        result[name] = TileLatency(median_ms=float(np.median(rounds_ms)), rounds_ms=rounds_ms)
    return result


def speedup_over(own: TileLatency, other: TileLatency) -> Int8Speedup:
    """Return the speedup of a file over another one, from the latencies of each round."""
    ratios = np.array(other.rounds_ms) / np.array(own.rounds_ms)
    median, low, high = (round(float(value), 4) for value in (np.median(ratios), ratios.min(), ratios.max()))
    return Int8Speedup(median=median, min=low, max=high)
