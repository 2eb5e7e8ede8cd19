import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import deploy.bench.system_monitor as module
from deploy.bench import process_cost
from deploy.bench.system_monitor import SystemMonitor


class FakeNvml:
    """A GPU whose clock falls for the given reasons."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, reasons=0, *, fails_after=None):
        self.clocks = itertools.chain([1980, 1410], itertools.repeat(1500))
        self.reasons, self.left = reasons, fails_after

    def nvmlDeviceGetCount(self, *_):  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetName(self, *_):  # noqa: N802
        return b"NVIDIA Test"

    def nvmlDeviceGetClockInfo(self, _, kind):  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("GPU is lost")
        return next(self.clocks)

    def nvmlDeviceGetTemperature(self, *_):  # noqa: N802
        return 81

    def nvmlDeviceGetPowerUsage(self, *_):  # noqa: N802
        return 350_500

    def nvmlDeviceGetMemoryInfo(self, *_):  # noqa: N802
        return SimpleNamespace(used=2_000_000_000)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, *_):  # noqa: N802
        return self.reasons


def monitored(nvml):
    with SystemMonitor(nvml) as monitor:
        pass
    return monitor.result()


def test_a_gpu_that_throttles_gives_a_warning():
    record = monitored(FakeNvml(0x04 | 0x40))
    (gpu,) = record.gpus
    assert (gpu.name, gpu.sm_clock_mhz_min, gpu.sm_clock_mhz_max) == ("NVIDIA Test", 1410, 1980)
    assert (gpu.temperature_c_max, gpu.power_w_max, gpu.memory_mb_peak) == (81, 350.5, 2000.0)
    assert gpu.throttled == ("power cap", "thermal limit (hardware)")
    assert "NVIDIA Test throttled: power cap, thermal limit (hardware)" in record.warnings()
    assert record.nvml == "monitored"


def test_an_idle_gpu_is_not_throttled():
    assert monitored(FakeNvml(0x01)).gpus[0].throttled == ()


def test_a_lost_gpu_is_recorded():
    record = monitored(FakeNvml(fails_after=1))
    assert "GPU is lost" in record.nvml
    assert record.gpus[0].sm_clock_mhz_min == 1980


def test_without_nvml_there_are_no_gpus(monkeypatch):
    monkeypatch.setattr(module, "load_nvml", lambda: (None, "not monitored: nvidia-ml-py is not installed"))
    record = monitored(None)
    assert record.gpus == ()
    assert record.nvml.startswith("not monitored")
    assert record.samples >= 2
    assert record.rss_mb_peak > 10
    assert record.load_before == pytest.approx(os.getloadavg()[0], abs=5)


def test_steal_time_and_other_processes_give_warnings():
    record = monitored(FakeNvml()).model_copy(update={"steal_fraction": 0.1, "other_processes_cores": 1.5})
    words = " ".join(record.warnings())
    assert "10% of the CPU time" in words
    assert "used 1.5 cores" in words


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent():
    """The memory of the parent at the start of the process does not count."""
    ballast = np.ones(100_000_000)
    code = "from deploy.bench.system_monitor import process_peak_mb; print(process_peak_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(done.stdout) < 400
    assert module.process_peak_mb() > ballast.nbytes / 1e6


def test_pynvml_has_the_functions_and_bits_that_are_read():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    source = Path(module.__file__).read_text() + Path(process_cost.__file__).read_text()
    names = set(re.findall(r"nvml\.(nvml\w+|NVML\w+)", source))
    assert {"nvmlDeviceGetClockInfo", "nvmlDeviceGetComputeRunningProcesses", "NVML_CLOCK_SM"} <= names
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
    assert set(module.THROTTLING) == {
        pynvml.nvmlClocksThrottleReasonSwPowerCap,
        pynvml.nvmlClocksThrottleReasonHwSlowdown,
        pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
    assert module.THROTTLING[pynvml.nvmlClocksThrottleReasonHwThermalSlowdown] == "thermal limit (hardware)"
