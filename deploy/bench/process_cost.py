"""What one engine costs in a process of its own: its start, its first answer, and its largest memory.

`ifkd bench` loads all engines together, as it measures them in turns; the memory of that process belongs to none of
them, and the second engine of a runtime finds it loaded. So each engine is started once more, alone:

    python -m deploy.bench.process_cost '{"subject": "bundle", "backend": "onnxruntime", …}'
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.accuracy.evaluated_model import open_model
from deploy.bench.system_monitor import BYTES_PER_MB, find_nvml, process_peak_mb
from deploy.engines.engine import Backend, Engine
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.errors import EngineError

RUNS = 3
MOST_SECONDS = 900
"""A runtime may build kernels when it opens an engine."""


class ProcessCost(Schema):
    """One engine, alone in a process."""

    batch: int
    """Tiles of its largest run."""
    start_up_ms: float
    """From the start of the process to a ready engine, with Python, the program and the runtime."""
    load_ms: float
    """Of it, from an open bundle to a ready engine, the runtime's import included."""
    first_run_ms: float
    """The first answer, to one tile: it often builds kernels or plans memory."""
    bare_rss_mb: float
    """Resident memory before the engine was opened, 10^6 bytes."""
    peak_rss_mb: float
    """Largest resident memory after runs of that batch, 10^6 bytes."""
    gpu_memory_mb: float | None
    """Memory the process then held on GPUs, 10^6 bytes; None where NVML does not tell."""


class ProcessCostRequest(Schema):
    """What the process is asked to open."""

    subject: Path
    """A bundle or a checkpoint."""
    backend: Backend
    precision: Precision
    batch: int
    threads: int | None
    started_s: float
    """When the process was started, seconds since 1970."""


def measure_process_cost(
    subject: Path, backend: Backend, precision: Precision, *, batch: int, threads: int | None = None
) -> ProcessCost:
    """Return what an engine costs in a process of its own.

    Args:
        subject: A bundle or a checkpoint.
        backend: The runtime.
        precision: Which of its files.
        batch: Tiles of the largest run.
        threads: CPU threads of the runtime; by default its own choice.

    Raises:
        EngineError: The process ended without an answer; the message has its last words.
    """
    request = ProcessCostRequest(
        subject=subject, backend=backend, precision=precision, batch=batch, threads=threads, started_s=time.time()
    )
    command = [sys.executable, "-m", "deploy.bench.process_cost", request.model_dump_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"Alone in a process, the engine was not ready after {MOST_SECONDS} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(f"Alone in a process, the engine failed ({words})")
    return ProcessCost.model_validate_json(done.stdout.splitlines()[-1])


def held_on_gpus_mb(nvml: Any, process: int) -> float | None:
    """Return the memory that a process holds on all GPUs, 10^6 bytes; None when NVML does not know the process.

    Args:
        nvml: NVIDIA's management library, or None.
        process: The process's number.
    """
    if nvml is None:
        return None
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    running = [one for handle in handles for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    held = [one.usedGpuMemory for one in running if one.pid == process and one.usedGpuMemory is not None]
    return sum(held) / BYTES_PER_MB if held else None


def _weigh(request: ProcessCostRequest) -> ProcessCost:
    subject = open_model(request.subject)
    bare = psutil.Process().memory_info().rss / BYTES_PER_MB
    opened = time.perf_counter()
    with subject.open(request.backend, request.precision, request.threads) as engine:
        ready = time.perf_counter()
        start_up_s = time.time() - request.started_s
        tiles = _noise(engine, request.batch)
        before = time.perf_counter()
        engine.infer(tiles[:1])
        answered = time.perf_counter()
        for _ in range(RUNS):
            engine.infer(tiles)
        return ProcessCost(
            batch=request.batch,
            start_up_ms=1e3 * start_up_s,
            load_ms=1e3 * (ready - opened),
            first_run_ms=1e3 * (answered - before),
            bare_rss_mb=bare,
            peak_rss_mb=process_peak_mb(),
            gpu_memory_mb=held_on_gpus_mb(find_nvml()[0], os.getpid()),
        )


def _noise(engine: Engine, batch: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (batch, 3, *engine.info.tile_px), np.uint8)


def main(words: list[str]) -> int:
    """Answer one request on standard output."""
    print(_weigh(ProcessCostRequest.model_validate_json(words[0])).model_dump_json())  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
