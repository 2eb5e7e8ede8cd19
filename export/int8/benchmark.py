"""How fast ONNX files are on this machine's CPU. They take turns, so that what else it does slows all of them alike."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.bundle.manifest import Precision, Speed, Speedup
from export.precision.ort_session import open_session
from ifkd.core.detections import Array

ROUNDS = 6
TURN_S = 0.2
"""Least time of a file's turn in each round, seconds."""
LEAST_RUNS = 2
"""Runs of a turn at least."""


def measure_latency_ms(paths: Mapping[Precision, Path], tile: Array) -> dict[Precision, Speed]:
    """Return the time that each file takes for one tile, on all cores this process may use.

    Args:
        paths: The ONNX file of each precision.
        tile: uint8 [3, height, width].

    Raises:
        EngineError: ONNX Runtime cannot load a file.
    """
    sessions = {name: open_session(path, awake=True) for name, path in paths.items()}
    feed = {"tiles": tile[None]}
    for session in sessions.values():
        session.run(None, feed)
    turns: dict[Precision, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            taken: list[float] = []
            while len(taken) < LEAST_RUNS or sum(taken) < TURN_S:
                began = time.perf_counter()
                session.run(None, feed)
                taken.append(time.perf_counter() - began)
            turns[name].append(round(1e3 * float(np.median(taken)), 4))
    return {name: Speed(median_ms=float(np.median(one)), rounds_ms=tuple(one)) for name, one in turns.items()}


def speedup(own: Speed, other: Speed) -> Speedup:
    """Return how many times as fast as another file one is, from the rounds in which they ran side by side."""
    ratios = np.array(other.rounds_ms) / np.array(own.rounds_ms)
    median, least, most = (round(float(value), 4) for value in (np.median(ratios), ratios.min(), ratios.max()))
    return Speedup(median=median, least=least, most=most)
