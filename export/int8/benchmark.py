"""CPU latency of ONNX files, measured in turns so that other load on the machine affects all files equally."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.bundle.manifest import Int8Speedup, Precision, TileLatency
from export.precision.ort_session import open_session
from ifkd.core.detections import Array

ROUNDS = 6
TURN_S = 0.2
"""Minimum duration of a file's turn in each round, seconds."""
MIN_RUNS = 2
"""Minimum number of runs per turn."""


def measure_latency_ms(paths: Mapping[Precision, Path], tile: Array) -> dict[Precision, TileLatency]:
    """Return the latency of each file for one tile, on all cores that this process may use.

    Args:
        paths: The ONNX file of each precision.
        tile: uint8 [3, height, width].

    Raises:
        EngineError: ONNX Runtime cannot load a file.
    """
    sessions = {name: open_session(path, spin=True) for name, path in paths.items()}
    feed = {"tiles": tile[None]}
    for session in sessions.values():
        session.run(None, feed)
    turns: dict[Precision, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            taken: list[float] = []
            while len(taken) < MIN_RUNS or sum(taken) < TURN_S:
                began = time.perf_counter()
                session.run(None, feed)
                taken.append(time.perf_counter() - began)
            turns[name].append(round(1e3 * float(np.median(taken)), 4))
    return {name: TileLatency(median_ms=float(np.median(one)), rounds_ms=tuple(one)) for name, one in turns.items()}


def speedup_over(own: TileLatency, other: TileLatency) -> Int8Speedup:
    """Return the speedup of a file over another one, from the latencies of each round."""
    ratios = np.array(other.rounds_ms) / np.array(own.rounds_ms)
    median, low, high = (round(float(value), 4) for value in (np.median(ratios), ratios.min(), ratios.max()))
    return Int8Speedup(median=median, min=low, max=high)
