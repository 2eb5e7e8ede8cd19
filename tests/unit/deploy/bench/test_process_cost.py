"""What an engine costs alone: the child process is a real one, and what the parent holds is none of its memory."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import drifting_engine as world
from fakes import report_inputs as parts

import deploy.bench.process_cost as module
from deploy.bench.bench import BenchmarkSession
from deploy.bench.latency import GroundCoverage, TimingConfig
from deploy.bench.process_cost import held_on_gpus_mb, measure_process_cost
from deploy.cli.main import main
from export.bundle.bundle import open_bundle
from ifkd.core.errors import EngineError

QUICK = TimingConfig(warmup_s=0.0, warmup_runs=1, min_s=1e-9, min_samples=1, rounds=1)


@pytest.fixture(scope="module")
def bundle(whole_bundle):
    return open_bundle(whole_bundle)


def test_an_engine_is_weighed_in_a_process_of_its_own(whole_bundle):
    ballast = np.ones(100_000_000)
    found = measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=4, threads=1)
    assert found.batch == 4
    assert 20 < found.bare_rss_mb < found.peak_rss_mb < ballast.nbytes / 1e6
    assert 0 < found.load_ms < found.start_up_ms
    assert found.first_run_ms > 0
    assert found.gpu_memory_mb is None


def test_a_process_that_fails_says_why(whole_bundle):
    with pytest.raises(EngineError, match=r"Alone in a process, .*no ONNX file in int8"):
        measure_process_cost(whole_bundle, "onnxruntime", "int8", batch=1)


def test_a_process_that_hangs_or_dies_is_given_up(whole_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_SECONDS", 0.01)
    with pytest.raises(EngineError, match="was not ready after"):
        measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=1)
    monkeypatch.setattr(module, "MOST_SECONDS", 60)
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EngineError, match="exit code -9"):
        measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=1)


def test_each_engine_is_weighed_once_at_its_largest_batch(bundle):
    asked = []

    def weigh_one(role, backend, precision, batch):
        asked.append((role, backend, precision, batch))
        if precision == "fp16":
            raise EngineError("No memory")
        return parts.footprint(3.0)

    tiles = np.zeros((4, 3, world.TILE, world.TILE), np.uint8)
    with BenchmarkSession(bundle, lambda *_: world.engine(), tiles, QUICK, world.engine) as race:
        race.run([("onnxruntime", precision, batch) for precision in ("fp32", "fp16") for batch in (1, 4, 8)])
        race.weigh(weigh_one)
        cells = race.cells(GroundCoverage((96, 96)))
    assert asked == [
        ("reference", "torch", "fp32", 4),
        ("bundle", "onnxruntime", "fp32", 4),
        ("bundle", "onnxruntime", "fp16", 4),
    ]
    told = {(cell.role, cell.precision, cell.batch): (cell.footprint, cell.footprint_failure) for cell in cells}
    assert told["bundle", "fp32", 1] == (parts.footprint(3.0), None)
    assert told["reference", "fp32", 4] == (parts.footprint(3.0), None)
    assert told["bundle", "fp16", 1] == (None, "No memory.")


def test_the_verb_weighs_the_bundle_and_its_teacher(whole_bundle, checkpoint_path, tmp_path, monkeypatch, capsys):
    asked = []

    def weigh(path, backend, precision, *, batch, threads):
        asked.append((path, backend, precision, batch, threads))
        return parts.footprint(3.0)

    monkeypatch.setattr(module, "footprint_of", weigh)
    words = ["bench", whole_bundle, "--precision", "fp32", "--reference", checkpoint_path, "--out", tmp_path / "b.json"]
    words += ["--seconds", "0.001", "--samples", "3", "--rounds", "3", "--threads", "1"]
    assert main([str(word) for word in words]) == 0
    assert sorted(asked) == sorted(
        [
            (checkpoint_path, "torch", "fp32", 1, 1),
            (whole_bundle, "onnxruntime", "fp32", 1, 1),
            (whole_bundle, "torch", "fp32", 1, 1),
        ]
    )
    cells = json.loads((tmp_path / "b.json").read_text())["cells"]
    assert [cell["footprint"]["peak_rss_mb"] for cell in cells] == [202.0] * 3


class Nvml:
    """Two GPUs; one process holds memory on both, another on one."""

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, index):  # noqa: N802
        rows = [[(7, 300_000_000), (8, 5_000_000)], [(7, 200_000_000), (9, None)]][index]
        return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in rows]


def test_memory_on_gpus_is_the_process_s_own():
    assert held_on_gpus_mb(Nvml(), 7) == 500.0
    assert held_on_gpus_mb(Nvml(), 8) == 5.0
    assert held_on_gpus_mb(Nvml(), 9) is None  # NVML knows the process, not what it holds
    assert held_on_gpus_mb(Nvml(), 10) is None
    assert held_on_gpus_mb(None, 7) is None
