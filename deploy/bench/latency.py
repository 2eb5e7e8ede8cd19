"""Latency of engines: samples taken in interleaved turns, their statistics, and whether the timing was stable."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from deploy.engines.engine import Engine
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import UsageError
from ifkd.core.timing import TimedCall, TimingSamples, TurnLimits, time_in_turns

WINDOWS_COMPARED = 3
MAX_BATCHES_IN_MEMORY = 8
PIPELINED_BATCHES = 16
"""Batches of one timed run of `infer_each`; the first one overlaps with none."""
SQUARE_METERS_PER_KM2 = 1e6


class TimingConfig(Schema):
    """Duration of a measurement, and when it counts as stable. Every turn of an engine is a window of samples."""

    warmup_s: NonNegativeFloat = 0.5
    """Least duration of the warm-up, seconds; its runs are not part of the samples."""
    warmup_runs: PositiveInt = 3
    """Least number of warm-up runs."""
    min_s: PositiveFloat = 3.0
    """Least duration of all rounds, seconds."""
    min_samples: PositiveInt = 30
    """Least number of samples of all rounds."""
    rounds: PositiveInt = 6
    """Turns of each engine."""
    stable_median_ratio: PositiveFloat = 1.10
    """Largest ratio of the medians of the last three windows of a stable measurement."""
    stable_cov: PositiveFloat = 0.20
    """Largest coefficient of variation of a stable measurement."""

    @property
    def turns(self) -> TurnLimits:
        """Number and least length of the turns."""
        runs, seconds = -(-self.min_samples // self.rounds), self.min_s / self.rounds
        return TurnLimits(self.rounds, runs, seconds, self.warmup_runs, self.warmup_s)


class SampleSpread(Schema):
    """A distribution of durations, milliseconds."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float


class Stability(Schema):
    """Whether the timing was stable."""

    stable: bool
    rule: str
    """Definition of a stable measurement."""
    reason: str
    """Measured values behind the decision."""
    median_ratio: float | None
    """Largest over smallest median of the last three windows; None with fewer windows."""
    cov: float
    """Coefficient of variation: standard deviation over mean of all samples."""


class Throughput(Schema):
    """Throughput of inference alone."""

    tiles_per_s: float
    mpix_per_s: float
    """Million tile pixels per second."""
    km2_per_h: float | None
    """Ground area, overlap of neighboring tiles counted once; None when the ground sample distance is unknown."""


class Latency(Schema):
    """Latency of one engine at one batch size."""

    batch: int
    """Tiles per run."""
    runs: int
    """Samples taken."""
    per_batch: SampleSpread
    """Duration of a run."""
    per_tile: SampleSpread
    """Duration of a run divided by its tiles."""
    throughput: Throughput
    stability: Stability
    windows_ns: list[list[int]]
    """All samples by window, nanoseconds, in the order taken."""
    warmup_ns: list[int]
    """Warm-up runs, nanoseconds."""


@dataclass(frozen=True, slots=True)
class GroundCoverage:
    """Ground that a tile covers, for throughput in square kilometers."""

    tile_px: tuple[int, int]
    """(height, width)."""
    overlap_px: int = 0
    """Overlap of neighboring tiles, pixels of the tile."""
    gsd_m: float | None = None
    """Ground sample distance of the tile's pixels, meters."""


def timed_engine(name: str, engine: Engine, tiles: Array, *, batch: int) -> TimedCall:
    """Return an engine as a timed call that runs batches of `tiles`, uint8 [n, 3, height, width], in turn.

    Tiles are repeated where a batch needs more.

    Raises:
        UsageError: There are no tiles, or the batch is less than 1.
    """
    if not len(tiles) or batch < 1:
        raise UsageError("A measurement needs at least 1 tile and a batch of at least 1", got=(len(tiles), batch))
    count = max(1, min(MAX_BATCHES_IN_MEMORY, len(tiles) // batch))
    order = np.arange(count * batch) % len(tiles)
    batches = [np.ascontiguousarray(tiles[index]) for index in order.reshape(count, batch)]
    return TimedCall(name, engine.infer, itertools.cycle(batches))


def timed_pipeline(name: str, engine: Engine, tiles: Array, *, batch: int) -> TimedCall:
    """Return an engine as a timed call that runs `PIPELINED_BATCHES` batches of `tiles` by `infer_each`."""
    batches = timed_engine(name, engine, tiles, batch=batch).arguments

    def run(_: object) -> None:
        for _ in engine.infer_each(itertools.islice(batches, PIPELINED_BATCHES)):
            pass

    return TimedCall(name, run, itertools.repeat(None))


def measure_latency(engine: Engine, tiles: Array, *, batch: int, timing: TimingConfig) -> TimingSamples:
    """Time a single engine.

    Raises:
        EngineError: Inference fails.
    """
    call = timed_engine("engine", engine, tiles, batch=batch)
    for _ in time_in_turns([call], timing.turns, raise_errors=True):
        pass
    return call.samples


def summarize(samples: TimingSamples, *, batch: int, timing: TimingConfig, ground: GroundCoverage) -> Latency:
    """Return the statistics of samples with `batch` tiles per run; percentiles are interpolated linearly."""
    durations = np.array(samples.all_ns, np.float64)
    seconds = durations.sum() / 1e9
    tiles_per_s = batch * len(durations) / seconds
    height, width = ground.tile_px
    km2 = None
    if ground.gsd_m is not None:
        new_m2 = (height - ground.overlap_px) * (width - ground.overlap_px) * ground.gsd_m**2
        km2 = tiles_per_s * 3600 * new_m2 / SQUARE_METERS_PER_KM2
    return Latency(
        batch=batch,
        runs=len(durations),
        per_batch=sample_spread(durations / 1e6),
        per_tile=sample_spread(durations / 1e6 / batch),
        throughput=Throughput(tiles_per_s=tiles_per_s, mpix_per_s=tiles_per_s * height * width / 1e6, km2_per_h=km2),
        stability=judge_stability(samples.windows_ns, timing),
        windows_ns=samples.windows_ns,
        warmup_ns=samples.warmup_ns,
    )


def sample_spread(durations_ms: Array) -> SampleSpread:
    """Return percentiles, mean and extremes of durations [n], milliseconds."""
    p50, p90, p95, p99 = np.percentile(durations_ms, [50, 90, 95, 99]).tolist()
    mean, low, high = float(durations_ms.mean()), float(durations_ms.min()), float(durations_ms.max())
    return SampleSpread(p50_ms=p50, p90_ms=p90, p95_ms=p95, p99_ms=p99, mean_ms=mean, min_ms=low, max_ms=high)


def judge_stability(windows: Sequence[Sequence[int]], timing: TimingConfig) -> Stability:
    """Return whether the timing was stable, given the durations of each window, nanoseconds."""
    limit, cov_limit = timing.stable_median_ratio, timing.stable_cov
    rule = (
        f"medians of the last {WINDOWS_COMPARED} windows within {limit - 1:.0%} of each other, "
        f"and coefficient of variation of all samples at most {cov_limit:.0%}"
    )
    durations = [sample for window in windows for sample in window]
    cov = statistics.pstdev(durations) / statistics.fmean(durations) if durations else 0.0
    medians = [statistics.median(window) for window in windows if window][-WINDOWS_COMPARED:]
    if len(medians) < WINDOWS_COMPARED:
        reason = f"only {len(medians)} of the {WINDOWS_COMPARED} windows that the rule needs were measured"
        return Stability(stable=False, rule=rule, reason=reason, median_ratio=None, cov=cov)
    ratio = max(medians) / min(medians)
    violations = []
    if ratio > limit:
        violations.append(f"the medians of the last {WINDOWS_COMPARED} windows differ by {ratio - 1:.1%}")
    if cov > cov_limit:
        violations.append(f"the coefficient of variation is {cov:.1%}")
    reason = " and ".join(violations) or f"medians within {ratio - 1:.1%}, coefficient of variation {cov:.1%}"
    return Stability(stable=not violations, rule=rule, reason=reason, median_ratio=ratio, cov=cov)
