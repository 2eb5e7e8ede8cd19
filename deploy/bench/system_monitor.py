"""Monitor the machine during a measurement: load, CPU frequency, steal time, and clocks and throttling of GPUs.

A thread reads counters twice a second. A value that cannot be read is None.
"""

import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ifkd.core.config import Schema

PERIOD_S = 0.5
BYTES_PER_MB = 1e6
MONITORED = "monitored"
MAX_STEAL_FRACTION = 0.02
MAX_OTHER_CORES = 0.25
"""Larger values of steal time and of the load by other processes give a warning."""
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}
"""NVML's reasons that lower a clock, by their bit."""


class GpuRecord(Schema):
    """A GPU during the measurement."""

    name: str
    sm_clock_mhz_min: int
    sm_clock_mhz_max: int
    temperature_c_max: int
    power_w_max: float
    memory_mb_peak: float
    """Largest memory in use by all processes, 10^6 bytes."""
    throttled: tuple[str, ...]
    """Reasons that lowered the clock at any time."""


class SystemRecord(Schema):
    """The machine during the measurement."""

    seconds: float
    samples: int
    """How often the counters were read."""
    load_before: float
    """Load average of one minute."""
    load_after: float
    cpu_mhz_min: float | None
    """Lowest mean frequency of the cores; None where the system does not report it."""
    cpu_mhz_max: float | None
    steal_fraction: float | None
    """Fraction of CPU time that the host gave to other guests; None where the system does not report it."""
    other_processes_cores: float
    """CPU cores that other processes used, on average."""
    rss_mb_peak: float
    """Largest sampled resident memory of this process, 10^6 bytes."""
    gpus: tuple[GpuRecord, ...]
    nvml: str
    """`monitored`, or the reason why GPUs were not."""

    def warnings(self) -> list[str]:
        """Return the conditions that may have changed the timing."""
        found = [f"{gpu.name} throttled: {', '.join(gpu.throttled)}" for gpu in self.gpus if gpu.throttled]
        if self.steal_fraction is not None and self.steal_fraction > MAX_STEAL_FRACTION:
            found.append(f"the host gave {self.steal_fraction:.0%} of the CPU time to other guests")
        if self.other_processes_cores > MAX_OTHER_CORES:
            found.append(f"other processes used {self.other_processes_cores:.1f} cores")
        return found


class SystemMonitor:
    """Monitor the machine while the `with` block runs; `result` returns the record.

    NVIDIA's management library is by default the module `pynvml`, where it is installed and works.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml, self._nvml_state = (nvml, MONITORED) if nvml is not None else load_nvml()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-monitor", daemon=True)
        self._process = psutil.Process()
        self._mhz: list[float] = []
        self._rss: list[int] = []
        self._gpus: list[tuple[Any, list[_GpuSample]]] = []
        """Handles of the GPUs and their samples."""
        self._samples = 0

    def __enter__(self) -> "SystemMonitor":  # noqa: PYI034 - beartype cannot check Self
        self._started = time.perf_counter()
        self._load = psutil.getloadavg()[0]
        self._cpu, self._own = psutil.cpu_times(), self._process.cpu_times()
        count = 0 if self._nvml is None else self._nvml.nvmlDeviceGetCount()
        self._gpus = [(self._nvml.nvmlDeviceGetHandleByIndex(index), []) for index in range(count)]
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._sample()

    def result(self) -> SystemRecord:
        """Return the record from the start until now."""
        seconds = time.perf_counter() - self._started
        cpu, own = psutil.cpu_times(), self._process.cpu_times()
        busy = _busy_s(cpu) - _busy_s(self._cpu) - (own.user + own.system - self._own.user - self._own.system)
        total = sum(cpu) - sum(self._cpu)
        steal = getattr(cpu, "steal", None)
        return SystemRecord(
            seconds=seconds,
            samples=self._samples,
            load_before=self._load,
            load_after=psutil.getloadavg()[0],
            cpu_mhz_min=min(self._mhz, default=None),
            cpu_mhz_max=max(self._mhz, default=None),
            steal_fraction=None if steal is None or total <= 0 else (steal - self._cpu.steal) / total,
            other_processes_cores=max(0.0, busy / seconds),
            rss_mb_peak=max(self._rss, default=0) / BYTES_PER_MB,
            gpus=tuple(_gpu_record(self._nvml, handle, samples) for handle, samples in self._gpus if samples),
            nvml=self._nvml_state,
        )

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        self._samples += 1
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        if frequency is not None and frequency.current:
            self._mhz.append(float(frequency.current))
        self._rss.append(self._process.memory_info().rss)
        for handle, samples in self._gpus:
            try:
                samples.append(_GpuSample.read(self._nvml, handle))
            except Exception as error:  # noqa: BLE001 - NVML's errors have no base class to name here
                self._nvml_state = f"NVML stopped responding ({error})"


class _GpuSample(NamedTuple):
    """One GPU at one moment."""

    clock_mhz: int
    temperature_c: int
    power_w: float
    memory_mb: float
    throttle_reasons: int
    """Bits of `THROTTLING`."""

    @classmethod
    def read(cls, nvml: Any, handle: Any) -> "_GpuSample":
        return cls(
            int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            nvml.nvmlDeviceGetMemoryInfo(handle).used / BYTES_PER_MB,
            int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        )


def _gpu_record(nvml: Any, handle: Any, samples: list[_GpuSample]) -> GpuRecord:
    name = nvml.nvmlDeviceGetName(handle)
    clocks, temperatures, power, memory, bits = zip(*samples, strict=True)
    throttled = tuple(reason for bit, reason in THROTTLING.items() if any(one & bit for one in bits))
    return GpuRecord(
        name=name.decode() if isinstance(name, bytes) else str(name),
        sm_clock_mhz_min=min(clocks),
        sm_clock_mhz_max=max(clocks),
        temperature_c_max=max(temperatures),
        power_w_max=max(power),
        memory_mb_peak=max(memory),
        throttled=throttled,
    )


def _busy_s(times: Any) -> float:
    """Return the CPU seconds of all processes of this system."""
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def load_nvml() -> tuple[Any, str]:
    """Return NVIDIA's management library, or None, and `monitored` or the reason why it is absent."""
    try:
        import pynvml  # noqa: PLC0415 - only a machine with an NVIDIA GPU has it
    except ImportError:
        return None, "not monitored: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"not monitored: NVML does not respond ({error})"
    return pynvml, MONITORED


def process_peak_mb() -> float:
    """Return the largest resident memory of this process, 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage on Linux includes the memory of the parent before exec; VmHWM does not.
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / BYTES_PER_MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / BYTES_PER_MB
