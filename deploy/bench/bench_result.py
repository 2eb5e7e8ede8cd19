"""The result of `ifkd bench`: bench.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from deploy.accuracy.evaluated_model import EvaluatedModelRecord
from deploy.accuracy.provenance import BundleRecord, EngineRecord
from deploy.bench.latency import Latency, TimingConfig
from deploy.bench.process_cost import ProcessCost
from deploy.bench.speedup import EngineSpeedup, engine_speedup
from deploy.bench.stage_timing import StageProfile
from deploy.bench.system_monitor import BYTES_PER_MB, SystemRecord
from deploy.scene.screen_search import ScreenSearch
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.config import Schema

SCOPE = "one inference call, from uint8 tiles in memory to candidates in memory, without reading and postprocessing"
ORDER = "the engines take turns, so that a change in the speed of the machine affects all of them"

EngineRole = Literal["bundle", "reference"]
"""An engine of the bundle, or the reference that it is compared with, such as the teacher."""


class TileSource(Schema):
    """The tiles that the engines ran on; latency can depend on their content."""

    kind: Literal["images", "noise"]
    description: str
    tiles: int


class BenchCell(Schema):
    """One engine at one batch size."""

    backend: str
    precision: Precision
    batch: int
    role: EngineRole = "bundle"
    engine: EngineRecord | None = None
    """None when it could not be opened."""
    file_mb: float | None = None
    """Size of the file, 10^6 bytes."""
    process_cost: ProcessCost | None = None
    """Start-up and memory in a process of its own, at its largest batch; None when not measured."""
    process_cost_failure: str | None = None
    """Reason why it was not measured."""
    latency: Latency | None = None
    """None when nothing was measured."""
    pipelined_tiles_per_s: float | None = None
    """Tiles per second of batches that overlap (`Engine.infer_each`); None for an engine that does not overlap them."""
    failure: str | None = None
    """Reason why the measurement is absent or incomplete."""
    note: str | None = None
    """Limit to the meaning of the latency."""

    @property
    def name(self) -> str:
        """The engine, without its batch size."""
        return ("reference " if self.role == "reference" else "") + f"{self.backend} {self.precision}"


class UnmeasuredFile(Schema):
    """An engine file of the bundle that was not measured."""

    file: str
    precision: Precision | None
    file_mb: float
    sha256: str
    builder: str | None
    """Program and version that built it."""
    built_for: str | None
    """Device that it was built for."""
    reason: str


class Bench(Schema):
    """The result of `ifkd bench`."""

    schema_version: Literal[2] = 2
    kind: Literal["bench"] = "bench"
    created: str
    """UTC, ISO 8601."""
    bundle: BundleRecord
    scope: str = SCOPE
    order: str = ORDER
    timing: TimingConfig
    threads: int | None
    """CPU threads of the runtimes; None for their own choice."""
    tiles: TileSource
    gsd_m: float | None
    """Ground sample distance of the tiles, meters."""
    overlap_px: int
    """Overlap of tiles that throughput in square kilometers assumes."""
    cells: tuple[BenchCell, ...]
    model: EvaluatedModelRecord | None = None
    """The detector of the bundle."""
    reference: EvaluatedModelRecord | None = None
    """The detector that it is compared with, such as its teacher."""
    speedups: tuple[EngineSpeedup, ...] = ()
    """Speedups over the reference, or over the first engine where there is none."""
    stages: tuple[StageProfile, ...] = ()
    """Time of each stage of an image; empty without labeled images."""
    screens: tuple[ScreenSearch, ...] = ()
    """Throughput in a scene without and with the screen of the bundle; empty without a scene."""
    machine: SystemRecord | None = None
    """The machine during the measurement of latency."""
    not_measured: tuple[UnmeasuredFile, ...]
    process_peak_mb: float
    """Largest resident memory of the process with all engines, 10^6 bytes."""
    partial: bool
    """The measurement was interrupted."""
    environment: dict[str, Any]

    @property
    def devices(self) -> str:
        """The devices that ran engines."""
        return "; ".join(dict.fromkeys(cell.engine.device for cell in self.cells if cell.engine)) or "no engine ran"

    @property
    def used_gpu(self) -> bool:
        """Whether any engine ran on another device than a CPU."""
        return any(cell.engine is not None and not cell.engine.device.startswith("CPU") for cell in self.cells)

    def machine_warnings(self) -> list[str]:
        """Return the conditions of the machine that may have changed the timing; GPUs count only where they ran."""
        if self.machine is None:
            return []
        machine = self.machine if self.used_gpu else self.machine.model_copy(update={"gpus": ()})
        return machine.warnings()


def compute_speedups(cells: Sequence[BenchCell]) -> tuple[EngineSpeedup, ...]:
    """Return, for each batch size, the speedups over the reference, or over the first engine where there is none."""
    found: list[EngineSpeedup | None] = []
    timed = [(cell, cell.latency) for cell in cells if cell.latency is not None]
    for batch in sorted({cell.batch for cell, _ in timed}):
        windows = {cell.name: latency.windows_ns for cell, latency in timed if cell.batch == batch}
        baseline = next((name for name in windows if name.startswith("reference")), next(iter(windows)))
        theirs = windows.pop(baseline)
        for name, own in windows.items():
            found.append(engine_speedup(name, own, baseline=baseline, baseline_windows=theirs, batch=batch))
    return tuple(one for one in found if one is not None)


def unmeasured_files(bundle: Bundle, cells: Sequence[BenchCell]) -> tuple[UnmeasuredFile, ...]:
    """Return the engine files of a bundle that no cell measured."""
    measured = {cell.engine.file for cell in cells if cell.engine is not None and cell.latency is not None}
    result = []
    for name in (one for one in bundle.find("engine") if one not in measured):
        record = bundle.manifest.files[name]
        metadata = _read_metadata(bundle.path / Path(name).with_suffix(".json"))
        builder = [str(metadata[key]) for key in ("builder", "builder_version") if metadata.get(key)]
        device = metadata.get("device")
        result.append(
            UnmeasuredFile(
                file=name,
                precision=record.precision,
                file_mb=record.bytes / BYTES_PER_MB,
                sha256=record.sha256,
                builder=" ".join(builder) or None,
                built_for=None if device is None else str(device),
                reason=_reason_not_measured(cells, record.precision),
            )
        )
    return tuple(result)


def _reason_not_measured(cells: Sequence[BenchCell], precision: Precision | None) -> str:
    same = (cell for cell in cells if (cell.backend, cell.precision) == ("tensorrt", precision))
    return f"not measured: {next((cell.failure for cell in same if cell.failure), 'needs an NVIDIA GPU')}"


def _read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata file of an engine; empty where it is absent or invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
