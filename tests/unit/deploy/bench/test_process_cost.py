"""The process cost of an engine: in a real child process, without the memory of the parent."""

import json
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import drifting_engine as fake
from fakes import report_inputs as parts

import deploy.bench.process_cost as module
from deploy.bench import bench
from deploy.bench.latency import GroundCoverage, TimingConfig
from deploy.bench.process_cost import GpuMemory, measure_process_cost
from deploy.bench.session import BenchmarkCase, BenchmarkSession, EngineKey
from deploy.cli.main import main
from deploy.engines import open_engine
from export.bundle.bundle import open_bundle
from ifkd.core.errors import EngineError

QUICK = TimingConfig(warmup_s=0.0, warmup_runs=1, min_s=1e-9, min_samples=1, rounds=1)


@pytest.fixture(scope="module")
def bundle(whole_bundle):
    return open_bundle(whole_bundle)


def test_an_engine_is_measured_in_a_process_of_its_own(whole_bundle):
    ballast = np.ones(100_000_000)
    found = measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=4, threads=1)
    assert found.batch == 4
    assert 20 < found.base_rss_mb < found.peak_rss_mb < ballast.nbytes / 1e6
    assert 0 < found.load_ms < found.start_up_ms
    assert found.first_run_ms > 0
    assert found.gpu_memory_mb is None


def test_a_process_that_fails_says_why(whole_bundle):
    with pytest.raises(EngineError, match=r"separate process .*no ONNX file in int8"):
        measure_process_cost(whole_bundle, "onnxruntime", "int8", batch=1)


def test_a_process_that_hangs_or_dies_is_an_error(whole_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.01)
    with pytest.raises(EngineError, match="was not ready after"):
        measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=1)
    monkeypatch.setattr(module, "TIMEOUT_S", 60)
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EngineError, match="exit code -9"):
        measure_process_cost(whole_bundle, "onnxruntime", "fp32", batch=1)


def test_each_engine_is_measured_once_at_its_largest_batch(bundle):
    calls = []

    def measure(key, batch):
        calls.append((key, batch))
        if key.precision == "fp16":
            raise EngineError("No memory")
        return parts.process_cost(3.0)

    reference = EngineKey("torch", "fp32", "reference")
    fp32, fp16 = (EngineKey("onnxruntime", precision) for precision in ("fp32", "fp16"))
    tiles = np.zeros((4, 3, fake.TILE, fake.TILE), np.uint8)
    with BenchmarkSession(bundle, lambda _: fake.make_engine(), tiles, QUICK) as session:
        session.run([BenchmarkCase(key, batch) for key in (reference, fp32, fp16) for batch in (1, 4, 8)])
        session.measure_process_costs(measure)
        cells = session.cells(GroundCoverage((96, 96)))
    assert calls == [(reference, 4), (fp32, 4), (fp16, 4)]
    found = {(cell.role, cell.precision, cell.batch): (cell.process_cost, cell.process_cost_failure) for cell in cells}
    assert found["bundle", "fp32", 1] == (parts.process_cost(3.0), None)
    assert found["reference", "fp32", 4] == (parts.process_cost(3.0), None)
    assert found["bundle", "fp16", 1] == (None, "No memory.")


@pytest.mark.slow
def test_the_command_measures_the_bundle_and_its_teacher(whole_bundle, checkpoint_path, tmp_path, monkeypatch):
    calls = []

    def measure(path, backend, precision, *, batch, threads):
        calls.append((path, backend, precision, batch, threads))
        return parts.process_cost(3.0)

    monkeypatch.setattr(bench, "measure_process_cost", measure)
    words = ["bench", whole_bundle, "--precision", "fp32", "--reference", checkpoint_path, "--out", tmp_path / "b.json"]
    words += ["--seconds", "0.001", "--samples", "3", "--rounds", "3", "--threads", "1"]
    assert main([str(word) for word in words]) == 0
    assert sorted(calls) == sorted(
        [
            (checkpoint_path, "torch", "fp32", 1, 1),
            (whole_bundle, "onnxruntime", "fp32", 1, 1),
            (whole_bundle, "torch", "fp32", 1, 1),
        ]
    )
    cells = json.loads((tmp_path / "b.json").read_text())["cells"]
    assert [cell["process_cost"]["peak_rss_mb"] for cell in cells] == [202.0] * 3


class Nvml:
    """Two GPUs; `used` has the memory of each process on each of them, and `pids` what NVML calls the processes."""

    class NVMLError(Exception):
        pass

    def __init__(self, *used, pids=None, refuses=()):
        self.used, self.pids, self.refuses = used, pids or {}, refuses

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, index):  # noqa: N802
        self._check("memory")
        return SimpleNamespace(used=10_000_000 + sum(self.used[index].values()))

    def nvmlDeviceGetComputeRunningProcesses(self, index):  # noqa: N802
        self._check("processes")
        processes = self.used[index].items()
        return [SimpleNamespace(pid=self.pids.get(pid, pid), usedGpuMemory=held) for pid, held in processes]

    def _check(self, kind):
        if kind in self.refuses:
            raise self.NVMLError(kind)


BEFORE, AFTER = ({8: 5_000_000}, {}), ({8: 5_000_000, 7: 300_000_000}, {7: 200_000_000})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 500.0),
        # In a container, NVML lists the ids of the host.
        ({"pids": {7: 70_123, 8: 70_001}}, 500.0),
        # The same, and a process of the host has the id that this process has in the container.
        ({"pids": {7: 70_123, 8: 7}}, 500.0),
        ({"refuses": ("processes",)}, 500.0),
        ({"refuses": ("memory",)}, None),
    ],
)
def test_memory_on_gpus_is_what_the_process_took(options, expected):
    before, after = (GpuMemory.read(Nvml(*used, **options), 7) for used in (BEFORE, AFTER))
    assert (None if after is None else after.since_mb(before)) == expected


def test_without_nvml_there_is_no_memory():
    assert GpuMemory.read(None, 7) is None


def test_a_gpu_engine_is_measured_inside_a_container(whole_bundle, monkeypatch):
    readings = iter([GpuMemory(0, 1_000_000), GpuMemory(0, 801_000_000)])
    monkeypatch.setattr(module, "load_nvml", lambda: (object(), "monitored"))
    monkeypatch.setattr(module.GpuMemory, "read", lambda nvml, _: None if nvml is None else next(readings))
    with open_engine(open_bundle(whole_bundle), threads=1) as engine:
        model = SimpleNamespace(open=lambda *_: nullcontext(engine))
        monkeypatch.setattr(module, "open_model", lambda _: model)
        request = {"model": whole_bundle, "precision": "fp32", "batch": 2, "threads": 1, "started_s": time.time()}
        found = module._measure_here(module.ProcessCostRequest(backend="onnxruntime-cuda", **request))
        assert found.gpu_memory_mb == 800.0
        assert module._measure_here(module.ProcessCostRequest(backend="onnxruntime", **request)).gpu_memory_mb is None
