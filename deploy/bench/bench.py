"""The latency of a bundle's files on this machine: backends x precisions x batch sizes, measured in turns."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploy.accuracy.evaluated_model import EvaluatedModelRecord
from deploy.accuracy.image_detection import TilingConfig, tiles_of
from deploy.accuracy.provenance import BundleRecord, EngineRecord
from deploy.bench.latency import (
    BenchmarkCase,
    GroundCoverage,
    Latency,
    TimingConfig,
    benchmark_case,
    measure_interleaved,
    summarize,
)
from deploy.bench.process_cost import ProcessCost
from deploy.bench.speedup import Speedup, speedup_of
from deploy.bench.stage_timing import StageRun
from deploy.bench.system_monitor import BYTES_PER_MB, SystemRecord
from deploy.engines.engine import Backend, Engine, EngineInfo
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import IfkdError
from ifkd.core.progress import progress, track
from ifkd.data.coco import CocoDataset

NOISE_SEED = 0
MOST_TILES = 64
SCOPE = "one call of the engine, uint8 tiles in memory to candidates in memory; reading, selection and merging excluded"
ORDER = "engines take turns, so that a machine that slows down slows them all"


Role = Literal["bundle", "reference"]
Key = tuple[Role, Backend, Precision]


class TileSource(Schema):
    """What was fed to the engines; latency can depend on it, as detections cost time."""

    kind: Literal["images", "noise"]
    description: str
    tiles: int


class BenchCell(Schema):
    """One engine at one batch size."""

    backend: str
    precision: Precision
    batch: int
    role: Role = "bundle"
    """Whether it is the bundle's, or the reference that the bundle is measured beside."""
    engine: EngineRecord | None = None
    """None when it did not open."""
    file_mb: float | None = None
    """Size of the file, 10^6 bytes."""
    footprint: ProcessCost | None = None
    """The same engine alone in a process, at the largest batch it was timed with; None when that was not measured."""
    footprint_failure: str | None = None
    """Why not."""
    latency: Latency | None = None
    """None when nothing was measured."""
    failure: str | None = None
    """Why nothing, or not all, was measured."""
    remark: str | None = None
    """What keeps the figure from meaning what it seems to."""


class UnmeasuredFile(Schema):
    """An engine file of the bundle that this machine did not run."""

    file: str
    precision: Precision | None
    file_mb: float
    sha256: str
    builder: str | None
    """Program and version that built it, as its sidecar says."""
    built_for: str | None
    """The device it was built for, as its sidecar says."""
    reason: str


class Bench(Schema):
    """The result of `ifkd bench`."""

    schema_version: Literal[1] = 1
    kind: Literal["bench"] = "bench"
    created: str
    """UTC, ISO 8601."""
    bundle: BundleRecord
    scope: str = SCOPE
    order: str = ORDER
    procedure: TimingConfig
    threads: int | None
    """CPU threads given to the runtimes; None leaves the choice to them."""
    tiles: TileSource
    gsd_m: float | None
    """Ground sample distance of the tiles, meters."""
    overlap_px: int
    """Overlap of tiles that the figure in square kilometers allows for."""
    cells: tuple[BenchCell, ...]
    subject: EvaluatedModelRecord | None = None
    """The bundle's detector, with its size."""
    reference: EvaluatedModelRecord | None = None
    """The detector it was measured beside, such as its teacher."""
    ratios: tuple[Speedup, ...] = ()
    """Latencies against the reference, else against the first engine, of rounds taken in turns."""
    stages: tuple[StageRun, ...] = ()
    """Where the time of an image goes; empty where no labeled images were at hand."""
    machine: SystemRecord | None = None
    """What the machine did meanwhile."""
    not_measured: tuple[UnmeasuredFile, ...]
    process_peak_mb: float
    """Largest resident memory of the process, all engines together, 10^6 bytes."""
    partial: bool
    """It was interrupted; what was measured until then is here."""
    environment: dict[str, Any]


@dataclass(slots=True)
class TimedEngine:
    """A cell on its way."""

    backend: Backend
    precision: Precision
    batch: int
    role: Role = "bundle"
    engine: Engine | None = None
    runner: BenchmarkCase | None = None
    failure: str | None = None

    @property
    def key(self) -> "Key":
        """What the engine is known by, whatever the batch."""
        return (self.role, self.backend, self.precision)


@dataclass(slots=True)
class BenchmarkSession:
    """Engines of a bundle that are loaded together and measured in turns.

    Use it in a `with`; `run` may be interrupted at any time, `cells` holds what was measured until then.
    """

    bundle: Bundle
    open_one: Callable[[Backend, Precision], Engine]
    tiles: Array
    """uint8 [n, 3, height, width]."""
    procedure: TimingConfig
    open_reference: Callable[[], Engine] | None = None
    """Opens the torch network to measure beside the bundle, at every batch."""
    _lanes: list[TimedEngine] = field(default_factory=list)
    _engines: dict[Key, Engine | str] = field(default_factory=dict)
    """Those that opened, and why the others did not."""
    _footprints: dict[Key, ProcessCost | str] = field(default_factory=dict)

    def __enter__(self) -> "BenchmarkSession":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            if isinstance(engine, Engine):
                engine.close()

    def run(self, combinations: Sequence[tuple[Backend, Precision, int]]) -> None:
        """Load and measure; an engine that fails leaves its cell with the reason."""
        self._lanes = []
        if self.open_reference is not None:
            batches = sorted({batch for _, _, batch in combinations})
            self._lanes += [TimedEngine("torch", "fp32", batch, "reference") for batch in batches]
        self._lanes += [TimedEngine(*combination) for combination in combinations]
        for lane in self._lanes:
            self._prepare(lane)
        runners = [lane.runner for lane in self._lanes if lane.runner is not None]
        with progress(len(runners) * (self.procedure.rounds + 1), "bench", unit="turn") as bar:
            measure_interleaved(runners, self.procedure, after_turn=lambda _: bar.update())

    def weigh(self, weigh_one: Callable[[Role, Backend, Precision, int], ProcessCost]) -> None:
        """Measure each engine that answered once more, alone in a process, at its largest batch.

        Args:
            weigh_one: (role, backend, precision, batch) -> what it costs alone.
        """
        batches: dict[Key, int] = {}
        for lane in self._lanes:
            if lane.runner is not None and lane.runner.failure is None:
                batches[lane.key] = max(lane.batch, batches.get(lane.key, 0))
        for key, batch in track(batches.items(), "bench: each engine alone", total=len(batches), unit="engine"):
            try:
                self._footprints[key] = weigh_one(*key, batch)
            except Exception as error:  # noqa: BLE001 - a process may end in any way; the cell says how
                self._footprints[key] = _words(error)

    def cells(self, ground: GroundCoverage) -> tuple[BenchCell, ...]:
        """Return every cell with what is known of it."""
        return tuple(self._cell(lane, ground) for lane in self._lanes)

    def engines(self) -> list[Engine]:
        """Return the bundle's engines that are open."""
        return [one for (role, _, _), one in self._engines.items() if role == "bundle" and isinstance(one, Engine)]

    def _prepare(self, lane: TimedEngine) -> None:
        if lane.key not in self._engines:
            self._engines[lane.key] = self._open(*lane.key)
        engine = self._engines[lane.key]
        if isinstance(engine, str):
            lane.failure = engine
            return
        lane.engine = engine
        most = engine.info.max_batch
        if lane.batch > most:
            lane.failure = f"The engine takes at most {most} tiles at once"
            return
        name = f"{lane.role} {lane.backend} {lane.precision} batch {lane.batch}"
        lane.runner = benchmark_case(name, engine, self.tiles, batch=lane.batch)

    def _open(self, role: Role, backend: Backend, precision: Precision) -> Engine | str:
        """Return an engine that has answered once, or why there is none."""
        try:
            if role == "reference":
                assert self.open_reference is not None
                engine = self.open_reference()
            else:
                engine = self.open_one(backend, precision)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the cell says what
            return _words(error)
        try:
            engine.infer(self.tiles[:1])
        except Exception as error:  # noqa: BLE001
            engine.close()
            return _words(error)
        return engine

    def _cell(self, lane: TimedEngine, ground: GroundCoverage) -> BenchCell:
        cell = BenchCell(
            backend=lane.backend, precision=lane.precision, batch=lane.batch, role=lane.role, failure=lane.failure
        )
        if lane.engine is None:
            return cell
        info, footprint = lane.engine.info, self._footprints.get(lane.key)
        record = self.bundle.manifest.files.get(info.file) if lane.role == "bundle" else None
        latency = None
        failure = lane.failure
        if lane.runner is not None:
            failure = lane.runner.failure
            if lane.runner.samples.all_ns:
                latency = summarize(lane.runner.samples, self.procedure, ground)
            elif failure is None:
                failure = "Interrupted before it was measured"
        return cell.model_copy(
            update={
                "engine": EngineRecord.of(info),
                "file_mb": None if record is None else record.bytes / BYTES_PER_MB,
                "footprint": footprint if isinstance(footprint, ProcessCost) else None,
                "footprint_failure": footprint if isinstance(footprint, str) else None,
                "latency": latency,
                "failure": failure,
                "remark": _remark(info),
            }
        )


def bench_tiles(dataset: CocoDataset | None, framing: TilingConfig) -> tuple[Array, TileSource]:
    """Return tiles to measure on: of real images where there are some, else seeded noise, and which it was."""
    height, width = framing.tile_px
    if dataset is not None:
        tiles = tiles_of(dataset.images, framing, most=MOST_TILES)
        description = f"the first {len(tiles)} tiles of {dataset.path.name}, {height}x{width}"
        return tiles, TileSource(kind="images", description=description, tiles=len(tiles))
    tiles = np.random.default_rng(NOISE_SEED).integers(0, 256, (8, 3, height, width), np.uint8)
    description = f"uniform noise, {height}x{width}: no labeled images were given or found"
    return tiles, TileSource(kind="noise", description=description, tiles=len(tiles))


def speedups_of(cells: Sequence[BenchCell]) -> tuple[Speedup, ...]:
    """Return every engine's latency against the reference's, else against the first engine's, batch by batch."""
    found: list[Speedup | None] = []
    for batch in sorted({cell.batch for cell in cells}):
        measured = [cell for cell in cells if cell.batch == batch and cell.latency is not None]
        if len(measured) < 2:
            continue
        base = next((cell for cell in measured if cell.role == "reference"), measured[0])
        assert base.latency is not None
        found += [
            speedup_of(
                name_of(cell),
                cell.latency.windows_ns,
                against=name_of(base),
                others=base.latency.windows_ns,
                batch=batch,
            )
            for cell in measured
            if cell is not base and cell.latency is not None
        ]
    return tuple(ratio for ratio in found if ratio is not None)


def on_gpu(bench: Bench) -> bool:
    """Return whether any engine of a bench computed elsewhere than on a CPU."""
    return any(cell.engine is not None and not cell.engine.device.startswith("CPU") for cell in bench.cells)


def reservations(bench: Bench) -> list[str]:
    """Return what a reader must know of the machine before quoting the timings; a GPU counts where it was used."""
    if bench.machine is None:
        return []
    machine = bench.machine if on_gpu(bench) else bench.machine.model_copy(update={"gpus": ()})
    return machine.reservations()


def name_of(cell: BenchCell) -> str:
    """Return what a cell measured, without its batch."""
    return ("reference " if cell.role == "reference" else "") + f"{cell.backend} {cell.precision}"


def unmeasured_files(bundle: Bundle, cells: Sequence[BenchCell]) -> tuple[UnmeasuredFile, ...]:
    """Return the bundle's engine files that no cell measured, with what their sidecars say."""
    measured = {cell.engine.file for cell in cells if cell.engine is not None and cell.latency is not None}
    result = []
    for name in bundle.find("engine"):
        if name in measured:
            continue
        record = bundle.manifest.files[name]
        sidecar = _sidecar(bundle.path / Path(name).with_suffix(".json"))
        result.append(
            UnmeasuredFile(
                file=name,
                precision=record.precision,
                file_mb=record.bytes / BYTES_PER_MB,
                sha256=record.sha256,
                builder=_builder(sidecar),
                built_for=_text(sidecar.get("device")),
                reason=_why_not(cells, record.precision),
            )
        )
    return tuple(result)


def _remark(info: EngineInfo) -> str | None:
    if info.backend == "onnxruntime" and info.precision == "fp16" and info.device.startswith("CPU"):
        return "ONNX Runtime computes fp16 files in fp32 on a CPU: the file gives fp16's answers, not its speed"
    return None


def _why_not(cells: Sequence[BenchCell], precision: Precision | None) -> str:
    for cell in cells:
        if cell.backend == "tensorrt" and cell.precision == precision and cell.failure:
            return f"not measured: {cell.failure}"
    return "not measured: needs an NVIDIA GPU"


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _builder(sidecar: dict[str, Any]) -> str | None:
    name = _text(sidecar.get("builder"))
    version = _text(sidecar.get("builder_version"))
    return " ".join(part for part in (name, version) if part) or None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, IfkdError) else f"{type(error).__name__}: {error}"
