"""Start-up time and memory of one engine, measured in a process of its own.

`ifkd bench` times all engines in one process, whose memory cannot be attributed to any of them, and where the second
engine of a runtime finds it loaded. Each engine is therefore opened once more, alone:

    python -m deploy.bench.process_cost '{"model": "bundle", "backend": "onnxruntime", …}'
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from deploy.accuracy.evaluated_model import open_model
from deploy.bench.system_monitor import BYTES_PER_MB, load_nvml, process_peak_mb
from deploy.engines import GPU_BACKENDS
from deploy.engines.engine import Backend
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.errors import EngineError

RUNS = 3
TIMEOUT_S = 900
"""A runtime may build kernels when it opens an engine."""


class ProcessCost(Schema):
    """Start-up time and memory of one engine, alone in a process."""

    batch: int
    """Tiles of the largest run."""
    start_up_ms: float
    """From the start of the process to a ready engine, including Python, the program and the runtime."""
    load_ms: float
    """From an open bundle to a ready engine, including the import of the runtime."""
    first_run_ms: float
    """First inference, of one tile; it may include the building of kernels and memory planning."""
    base_rss_mb: float
    """Resident memory before the engine is opened, 10^6 bytes."""
    peak_rss_mb: float
    """Largest resident memory after runs of `batch` tiles, 10^6 bytes."""
    gpu_memory_mb: float | None
    """Memory that the process took on all GPUs, 10^6 bytes: what NVML attributes to it, or else (in containers, where
    NVML knows other process ids) the increase of the memory in use. None for a CPU, and without NVML."""


class ProcessCostRequest(Schema):
    """The engine that the child process opens."""

    model: Path
    """A bundle or a checkpoint."""
    backend: Backend
    precision: Precision
    batch: int
    threads: int | None
    started_s: float
    """Start of the process, seconds since 1970."""


def measure_process_cost(
    model: Path, backend: Backend, precision: Precision, *, batch: int, threads: int | None = None
) -> ProcessCost:
    """Measure an engine of a bundle or checkpoint in a process of its own; `batch` is its largest number of tiles.

    Raises:
        EngineError: The process failed; the message has the last line of its output.
    """
    request = ProcessCostRequest(
        model=model, backend=backend, precision=precision, batch=batch, threads=threads, started_s=time.time()
    )
    command = [sys.executable, "-m", "deploy.bench.process_cost", request.model_dump_json()]
    try:
        options: Any = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": TIMEOUT_S}
        done = subprocess.run(command, check=False, **options)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"In a process of its own, the engine was not ready after {TIMEOUT_S} s") from error
    if done.returncode != 0:
        message = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"The engine failed in a separate process ({message})")
    return ProcessCost.model_validate_json(done.stdout.splitlines()[-1])


class GpuMemory(NamedTuple):
    """Memory in use on all GPUs at one moment, bytes."""

    own: int
    """Memory that NVML attributes to the process."""
    total: int
    """Memory that all processes use."""

    @classmethod
    def read(cls, nvml: Any, pid: int) -> "GpuMemory | None":
        """Return the memory in use; None when NVML is None or does not report it."""
        if nvml is None:
            return None
        own = total = 0
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                total += nvml.nvmlDeviceGetMemoryInfo(handle).used
                with suppress(nvml.NVMLError):  # part of a GPU (MIG), where a process may not list the others
                    processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                    own += sum(one.usedGpuMemory or 0 for one in processes if one.pid == pid)
        except nvml.NVMLError:  # a GPU that shares the memory of the host
            return None
        return cls(own, total)

    def since_mb(self, before: "GpuMemory | None") -> float | None:
        """Return the memory that the process has taken since `before`, 10^6 bytes."""
        if before is None:
            return None
        # A process of the host may have the id that this process has in its container, but does not grow with it.
        own = self.own - before.own
        return (own if own > 0 else max(0, self.total - before.total)) / BYTES_PER_MB


def _measure_here(request: ProcessCostRequest) -> ProcessCost:
    model = open_model(request.model)
    before_nvml = time.perf_counter()
    nvml = load_nvml()[0] if request.backend in GPU_BACKENDS else None
    gpu_before = GpuMemory.read(nvml, os.getpid())
    base = psutil.Process().memory_info().rss / BYTES_PER_MB
    opened = time.perf_counter()
    with model.open(request.backend, request.precision, request.threads) as engine:
        load_s = time.perf_counter() - opened
        start_up_s = time.time() - request.started_s - (opened - before_nvml)
        shape = (request.batch, 3, *engine.info.tile_px)
        tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        first_started = time.perf_counter()
        engine.infer(tiles[:1])
        first_run_s = time.perf_counter() - first_started
        for _ in range(RUNS):
            engine.infer(tiles)
        gpu_after = GpuMemory.read(nvml, os.getpid())
        return ProcessCost(
            batch=request.batch,
            start_up_ms=1e3 * start_up_s,
            load_ms=1e3 * load_s,
            first_run_ms=1e3 * first_run_s,
            base_rss_mb=base,
            peak_rss_mb=process_peak_mb(),
            gpu_memory_mb=None if gpu_after is None else gpu_after.since_mb(gpu_before),
        )


if __name__ == "__main__":
    print(_measure_here(ProcessCostRequest.model_validate_json(sys.argv[1])).model_dump_json())  # noqa: T201
