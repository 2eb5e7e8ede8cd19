"""Speedups of INT8 files, from given latencies."""

from export.bundle.manifest import Int8Speedup, TileLatency
from export.int8.benchmark import speedup_over


def test_speedups_are_computed_round_by_round() -> None:
    own = TileLatency(median_ms=10.0, rounds_ms=(10.0, 20.0, 10.0))
    other = TileLatency(median_ms=30.0, rounds_ms=(30.0, 50.0, 20.0))
    assert speedup_over(own, other) == Int8Speedup(median=2.5, min=2.0, max=3.0)
