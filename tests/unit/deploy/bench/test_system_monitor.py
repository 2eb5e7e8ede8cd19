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
    """A GPU that gets hot: clocks fall, and the reasons say why."""

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


def watched(nvml):
    with SystemMonitor(nvml) as watch:
        pass
    return watch.result()


def test_a_gpu_that_throttles_is_a_reservation():
    seen = watched(FakeNvml(0x04 | 0x40))
    (gpu,) = seen.gpus
    assert (gpu.name, gpu.sm_clock_mhz_min, gpu.sm_clock_mhz_max) == ("NVIDIA Test", 1410, 1980)
    assert (gpu.temperature_c_max, gpu.power_w_max, gpu.memory_mb_peak) == (81, 350.5, 2000.0)
    assert gpu.throttled == ("power cap", "thermal limit (hardware)")
    assert "NVIDIA Test throttled: power cap, thermal limit (hardware)" in seen.reservations()
    assert seen.nvml == "watched"


def test_a_gpu_that_idles_or_runs_free_is_none():
    assert watched(FakeNvml(0x01)).gpus[0].throttled == ()


def test_a_gpu_that_is_lost_is_told_and_ends_nothing():
    seen = watched(FakeNvml(fails_after=1))
    assert "GPU is lost" in seen.nvml
    assert seen.gpus[0].sm_clock_mhz_min == 1980


def test_without_nvml_nothing_of_a_gpu_is_claimed(monkeypatch):
    monkeypatch.setattr(module, "find_nvml", lambda: (None, "not watched: nvidia-ml-py is not installed"))
    seen = watched(None)
    assert seen.gpus == ()
    assert seen.nvml.startswith("not watched")
    assert seen.looks >= 2
    assert seen.rss_mb_peak > 10
    assert seen.load_before == pytest.approx(os.getloadavg()[0], abs=5)


def test_stolen_time_and_busy_neighbors_are_reservations():
    seen = watched(FakeNvml()).model_copy(update={"steal_share": 0.1, "others_cpu": 1.5})
    words = " ".join(seen.reservations())
    assert "10% of the CPU time" in words
    assert "1.5 cores busy" in words


def test_the_peak_of_a_process_is_not_its_parents():
    """What the parent holds when it starts another program is none of that program's."""
    ballast = np.ones(100_000_000)
    code = "from deploy.bench.system_monitor import process_peak_mb; print(process_peak_mb())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < float(told.stdout) < 400
    assert module.process_peak_mb() > ballast.nbytes / 1e6


def test_nvidia_s_own_binding_has_the_names_and_the_bits_that_are_read():
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
