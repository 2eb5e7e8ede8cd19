"""Engines that are opened together and measured in turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy.accuracy.provenance import EngineRecord
from deploy.bench.bench_result import BenchCell, EngineRole
from deploy.bench.latency import (
    PIPELINED_BATCHES,
    GroundCoverage,
    TimingConfig,
    summarize,
    timed_engine,
    timed_pipeline,
)
from deploy.bench.process_cost import ProcessCost
from deploy.bench.system_monitor import BYTES_PER_MB
from deploy.engines.engine import Backend, Engine, EngineInfo
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.detections import Array
from ifkd.core.errors import IfkdError
from ifkd.core.progress import progress, track
from ifkd.core.timing import TimedCall, time_in_turns


class EngineKey(NamedTuple):
    """An engine of a session; it is opened once for all batch sizes."""

    backend: Backend
    precision: Precision
    role: EngineRole = "bundle"


@dataclass(frozen=True, slots=True)
class BenchmarkCase:
    """One engine at one batch size."""

    key: EngineKey
    batch: int


@dataclass(slots=True)
class TimedEngine:
    """A case with its samples."""

    case: BenchmarkCase
    engine: Engine | None = None
    call: TimedCall | None = None
    pipeline: TimedCall | None = None
    """The same batches overlapped, for an engine that can."""
    failure: str | None = None


@dataclass(slots=True)
class BenchmarkSession:
    """Open and time engines; use it as a context manager, which closes them.

    `run` may be interrupted at any time; `cells` then returns what was measured.
    """

    bundle: Bundle
    open_engine: Callable[[EngineKey], Engine]
    tiles: Array
    """uint8 [n, 3, height, width]."""
    timing: TimingConfig
    _timed: list[TimedEngine] = field(default_factory=list)
    _engines: dict[EngineKey, Engine | str] = field(default_factory=dict)
    """Open engines, and the failures of the others."""
    _costs: dict[EngineKey, ProcessCost | str] = field(default_factory=dict)
    """Process costs, and the failures of their measurement."""

    def __enter__(self) -> "BenchmarkSession":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            if isinstance(engine, Engine):
                engine.close()

    def run(self, cases: Sequence[BenchmarkCase]) -> None:
        """Open the engines and measure the cases; the cell of a case that fails has the reason."""
        self._timed = [TimedEngine(case) for case in cases]
        for timed in self._timed:
            self._prepare(timed)
        calls = [one for timed in self._timed for one in (timed.call, timed.pipeline) if one is not None]
        with progress(len(calls) * (self.timing.rounds + 1), "bench", unit="turn") as bar:
            for _ in time_in_turns(calls, self.timing.turns):
                bar.update()

    def measure_process_costs(self, measure: Callable[[EngineKey, int], ProcessCost]) -> None:
        """Call `measure` with each engine that was timed without failure, and its largest batch."""
        batches: dict[EngineKey, int] = {}
        for timed in self._timed:
            if timed.call is not None and timed.call.failure is None:
                key = timed.case.key
                batches[key] = max(timed.case.batch, batches.get(key, 0))
        for key, batch in track(batches.items(), "bench: process cost", total=len(batches), unit="engine"):
            try:
                self._costs[key] = measure(key, batch)
            except Exception as error:  # noqa: BLE001 - any failure becomes part of the cell
                self._costs[key] = _describe(error)

    def bundle_engines(self) -> list[Engine]:
        """Return the open engines of the bundle."""
        return [one for key, one in self._engines.items() if key.role == "bundle" and isinstance(one, Engine)]

    def cells(self, ground: GroundCoverage) -> tuple[BenchCell, ...]:
        """Return the cell of each case."""
        return tuple(self._cell(timed, ground) for timed in self._timed)

    def _prepare(self, timed: TimedEngine) -> None:
        key, batch = timed.case.key, timed.case.batch
        if key not in self._engines:
            self._engines[key] = self._open(key)
        engine = self._engines[key]
        if isinstance(engine, str):
            timed.failure = engine
        elif batch > engine.info.max_batch:
            timed.engine, timed.failure = engine, f"The engine accepts at most {engine.info.max_batch} tiles per run"
        else:
            name = f"{key.role} {key.backend} {key.precision} batch {batch}"
            timed.engine, timed.call = engine, timed_engine(name, engine, self.tiles, batch=batch)
            if engine.overlaps_batches:
                timed.pipeline = timed_pipeline(f"{name} overlapped", engine, self.tiles, batch=batch)

    def _open(self, key: EngineKey) -> Engine | str:
        """Return an engine after its first inference, or the failure."""
        try:
            engine = self.open_engine(key)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; it becomes part of the cell
            return _describe(error)
        try:
            engine.infer(self.tiles[:1])
        except Exception as error:  # noqa: BLE001
            engine.close()
            return _describe(error)
        return engine

    def _cell(self, timed: TimedEngine, ground: GroundCoverage) -> BenchCell:
        key, batch = timed.case.key, timed.case.batch
        latency, failure = None, timed.failure
        if timed.call is not None:
            failure = timed.call.failure or (timed.pipeline.failure if timed.pipeline is not None else None)
            if timed.call.samples.all_ns:
                latency = summarize(timed.call.samples, batch=batch, timing=self.timing, ground=ground)
            elif failure is None:
                failure = "Interrupted before the measurement"
        case: dict[str, Any] = {"backend": key.backend, "precision": key.precision, "batch": batch, "role": key.role}
        if timed.engine is None:
            return BenchCell(**case, failure=failure)
        info, cost = timed.engine.info, self._costs.get(key)
        record = self.bundle.manifest.files.get(info.file) if key.role == "bundle" else None
        return BenchCell(
            **case,
            engine=EngineRecord.of(info),
            file_mb=None if record is None else record.bytes / BYTES_PER_MB,
            process_cost=cost if isinstance(cost, ProcessCost) else None,
            process_cost_failure=cost if isinstance(cost, str) else None,
            latency=latency,
            pipelined_tiles_per_s=_rate(timed.pipeline, batch),
            failure=failure,
            note=_note(info),
        )


def _rate(pipeline: TimedCall | None, batch: int) -> float | None:
    """Return tiles per second of overlapped batches, or None if none were timed."""
    if pipeline is None or not pipeline.samples.all_ns:
        return None
    runs = pipeline.samples.all_ns
    return batch * PIPELINED_BATCHES * len(runs) / (sum(runs) / 1e9)


def _note(info: EngineInfo) -> str | None:
    """Return what a reader of the latency must know about the engine, or None."""
    if info.compute_type is None:
        return None
    what = f"{info.backend} computes {info.precision} files in {info.compute_type} on this CPU"
    return f"{what}: the latency is not that of {info.precision}"


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, IfkdError) else f"{type(error).__name__}: {error}"
