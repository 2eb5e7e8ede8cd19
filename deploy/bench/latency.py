"""Latency of engines: warm-up, interleaved rounds, every sample kept, and a verdict on whether the machine held still.

Engines are measured in turns (A B C, A B C, …), so that a machine that slows down slows them all. A turn is a
*window*: the stability rule compares the medians of the last three.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from deploy.engines.engine import Engine
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import UsageError

WINDOWS_COMPARED = 3
SQUARE_METERS_PER_KM2 = 1e6


class TimingConfig(Schema):
    """How a measurement is taken."""

    warmup_s: NonNegativeFloat = 0.5
    """Least time of warming up, seconds; these runs are kept apart from the samples."""
    warmup_runs: PositiveInt = 3
    """Least number of warm-up runs."""
    min_s: PositiveFloat = 3.0
    """Least time of measuring, seconds, over all rounds."""
    min_samples: PositiveInt = 30
    """Least number of samples, over all rounds."""
    rounds: PositiveInt = 6
    """Turns each engine gets; a turn is a window of the stability rule."""
    stable_median_ratio: PositiveFloat = 1.10
    """Largest ratio of the medians of the last three windows of a stable measurement."""
    stable_cov: PositiveFloat = 0.20
    """Largest coefficient of variation of a stable measurement."""


@dataclass(slots=True)
class LatencySamples:
    """Every run of one engine at one batch size, in the order they were taken."""

    batch: int
    """Tiles per run."""
    warmup_ns: list[int] = field(default_factory=list)
    """Durations of the warm-up runs."""
    windows_ns: list[list[int]] = field(default_factory=list)
    """Durations of the measured runs, by window."""

    @property
    def all_ns(self) -> list[int]:
        """The measured runs of all windows."""
        return list(itertools.chain.from_iterable(self.windows_ns))


@dataclass(slots=True)
class BenchmarkCase:
    """An engine with the batches it is measured on."""

    name: str
    engine: Engine
    batches: list[Array]
    """uint8 [batch, 3, height, width] each, run in turn."""
    samples: LatencySamples
    failure: str | None = None
    """Why it left the race."""
    cycle: Iterator[Array] = field(init=False)

    def __post_init__(self) -> None:
        self.cycle = itertools.cycle(self.batches)


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
    """Whether the machine held still."""

    stable: bool
    rule: str
    """What a stable measurement is."""
    reason: str
    """What was found."""
    median_ratio: float | None
    """Largest over smallest median of the last three windows; None with fewer windows."""
    cov: float
    """Standard deviation over mean, of all samples."""


class Throughput(Schema):
    """What the engine alone gets through, nothing else counted."""

    tiles_per_s: float
    mpix_per_s: float
    """Million tile pixels a second."""
    km2_per_h: float | None
    """Ground covered, overlap of neighboring tiles counted once; None when the sample distance is unknown."""


class Latency(Schema):
    """The measurement of one engine at one batch size."""

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
    """All samples, nanoseconds, by window, in the order taken."""
    warmup_ns: list[int]
    """The runs before, nanoseconds."""


@dataclass(frozen=True, slots=True)
class GroundCoverage:
    """What a tile covers, for throughput in square kilometers."""

    tile_px: tuple[int, int]
    """(height, width)."""
    overlap_px: int = 0
    """Overlap of neighboring tiles, pixels of the tile."""
    gsd_m: float | None = None
    """Ground sample distance of the tile's pixels, meters."""


def benchmark_case(name: str, engine: Engine, tiles: Array, *, batch: int, distinct: int = 8) -> BenchmarkCase:
    """Return an engine ready to be measured on `tiles`, cut into at most `distinct` batches that are run in turn.

    Args:
        name: For messages.
        engine: The engine.
        tiles: uint8 [n, 3, height, width]; they are repeated where a batch needs more.
        batch: Tiles per run.
        distinct: Most batches kept in memory.

    Raises:
        UsageError: There are no tiles, or the batch is less than 1.
    """
    if not len(tiles) or batch < 1:
        raise UsageError("A measurement needs at least 1 tile and a batch of at least 1", got=(len(tiles), batch))
    count = max(1, min(distinct, len(tiles) // batch))
    order = np.arange(count * batch) % len(tiles)
    batches = [np.ascontiguousarray(tiles[index]) for index in order.reshape(count, batch)]
    return BenchmarkCase(name, engine, batches, LatencySamples(batch))


def measure(engine: Engine, tiles: Array, *, batch: int, procedure: TimingConfig | None = None) -> LatencySamples:
    """Measure one engine alone.

    Raises:
        EngineError: The engine refuses the tiles.
    """
    alone = benchmark_case("engine", engine, tiles, batch=batch)
    for _ in _turns([alone], procedure or TimingConfig(), give_up=False):
        pass
    return alone.samples


def measure_interleaved(
    contestants: Sequence[BenchmarkCase],
    procedure: TimingConfig,
    *,
    after_turn: Callable[[BenchmarkCase], object] | None = None,
) -> None:
    """Measure engines in turns; their samples grow in place, so that an interruption loses nothing.

    An engine that raises is left out of the remaining rounds, and its `failure` says why.
    """
    for turn in _turns(contestants, procedure, give_up=True):
        if after_turn is not None:
            after_turn(turn)


def summarize(samples: LatencySamples, procedure: TimingConfig, ground: GroundCoverage) -> Latency:
    """Return the statistics of samples; percentiles interpolate linearly between order statistics."""
    durations = np.array(samples.all_ns, np.float64)
    seconds = durations.sum() / 1e9
    tiles_per_s = samples.batch * len(durations) / seconds
    height, width = ground.tile_px
    km2 = None
    if ground.gsd_m is not None:
        fresh = (height - ground.overlap_px) * (width - ground.overlap_px) * ground.gsd_m**2
        km2 = tiles_per_s * 3600 * fresh / SQUARE_METERS_PER_KM2
    return Latency(
        batch=samples.batch,
        runs=len(durations),
        per_batch=sample_spread(durations / 1e6),
        per_tile=sample_spread(durations / 1e6 / samples.batch),
        throughput=Throughput(tiles_per_s=tiles_per_s, mpix_per_s=tiles_per_s * height * width / 1e6, km2_per_h=km2),
        stability=judge_stability(samples.windows_ns, procedure),
        windows_ns=samples.windows_ns,
        warmup_ns=samples.warmup_ns,
    )


def sample_spread(durations_ms: Array) -> SampleSpread:
    """Return percentiles, mean and extremes of durations [n], milliseconds."""
    p50, p90, p95, p99 = np.percentile(durations_ms, [50, 90, 95, 99])
    return SampleSpread(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        mean_ms=float(durations_ms.mean()),
        min_ms=float(durations_ms.min()),
        max_ms=float(durations_ms.max()),
    )


def judge_stability(windows: Sequence[Sequence[int]], procedure: TimingConfig) -> Stability:
    """Return whether samples, given by window, are those of a machine that held still.

    Args:
        windows: Durations by window, nanoseconds.
        procedure: The limits.
    """
    limit, cov_limit = procedure.stable_median_ratio, procedure.stable_cov
    rule = (
        f"medians of the last {WINDOWS_COMPARED} windows within {limit - 1:.0%} of each other, "
        f"and coefficient of variation of all samples at most {cov_limit:.0%}"
    )
    everything = [sample for window in windows for sample in window]
    cov = statistics.pstdev(everything) / statistics.fmean(everything) if everything else 0.0
    medians = [statistics.median(window) for window in windows if window][-WINDOWS_COMPARED:]
    if len(medians) < WINDOWS_COMPARED:
        reason = f"only {len(medians)} of the {WINDOWS_COMPARED} windows the rule needs were taken"
        return Stability(stable=False, rule=rule, reason=reason, median_ratio=None, cov=cov)
    ratio = max(medians) / min(medians)
    findings = []
    if ratio > limit:
        findings.append(f"the medians of the last {WINDOWS_COMPARED} windows differ by {ratio - 1:.1%}")
    if cov > cov_limit:
        findings.append(f"the coefficient of variation is {cov:.1%}")
    reason = " and ".join(findings) or f"medians within {ratio - 1:.1%}, coefficient of variation {cov:.1%}"
    return Stability(stable=not findings, rule=rule, reason=reason, median_ratio=ratio, cov=cov)


def _turns(contestants: Sequence[BenchmarkCase], procedure: TimingConfig, *, give_up: bool) -> Iterator[BenchmarkCase]:
    """Warm every contestant up, then run the rounds; yield after each turn."""
    for warming in (True, *[False] * procedure.rounds):
        for runner in contestants:
            if runner.failure is not None:
                continue
            gc.collect()  # so that no engine pays for another's litter
            try:
                _warm_up(runner, procedure) if warming else _take_window(runner, procedure)
            except Exception as error:
                if not give_up:
                    raise
                runner.failure = f"{type(error).__name__}: {error}"
            yield runner


def _warm_up(runner: BenchmarkCase, procedure: TimingConfig) -> None:
    end = time.perf_counter_ns() + procedure.warmup_s * 1e9
    while len(runner.samples.warmup_ns) < procedure.warmup_runs or time.perf_counter_ns() < end:
        runner.samples.warmup_ns.append(_timed_run(runner))


def _take_window(runner: BenchmarkCase, procedure: TimingConfig) -> None:
    window: list[int] = []
    runner.samples.windows_ns.append(window)
    least = -(-procedure.min_samples // procedure.rounds)
    end = time.perf_counter_ns() + procedure.min_s / procedure.rounds * 1e9
    while len(window) < least or time.perf_counter_ns() < end:
        window.append(_timed_run(runner))


def _timed_run(runner: BenchmarkCase) -> int:
    tiles = next(runner.cycle)
    started = time.perf_counter_ns()
    runner.engine.infer(tiles)
    return time.perf_counter_ns() - started
