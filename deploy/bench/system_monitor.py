"""What the machine did while something was timed: load, frequency, stolen time, and a GPU's clocks and throttling.

A thread looks every half second, between samples as much as within them; it reads counters and computes nothing. What
cannot be read is None: a description never fails, and never guesses.
"""

import resource
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ifkd.core.config import Schema

PERIOD_S = 0.5
BYTES_PER_MB = 1e6
THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal limit (software)",
    0x40: "thermal limit (hardware)",
    0x80: "power brake",
}
"""NVML's reasons that lower a clock, by their bit."""


class GpuRecord(Schema):
    """One GPU while it was measured."""

    name: str
    sm_clock_mhz_min: int
    sm_clock_mhz_max: int
    temperature_c_max: int
    power_w_max: float
    memory_mb_peak: float
    """Largest memory in use on the GPU, 10^6 bytes, all processes."""
    throttled: tuple[str, ...]
    """Reasons that lowered the clock at any time."""


class SystemRecord(Schema):
    """The machine from the first sample to the last."""

    seconds: float
    looks: int
    """How often the machine was looked at."""
    load_before: float
    """Load average of one minute."""
    load_after: float
    cpu_mhz_min: float | None
    """Mean frequency of the cores, at its lowest; None where the system does not tell."""
    cpu_mhz_max: float | None
    steal_share: float | None
    """Share of CPU time that the host gave to others; None where the system does not tell."""
    others_cpu: float
    """CPU cores that other processes kept busy, on average."""
    rss_mb_peak: float
    """Largest resident memory of this process seen, 10^6 bytes."""
    gpus: tuple[GpuRecord, ...]
    nvml: str
    """`watched`, or why there is nothing of a GPU."""

    def reservations(self) -> list[str]:
        """Return what a reader must know before quoting the timings."""
        found = [f"{gpu.name} throttled: {', '.join(gpu.throttled)}" for gpu in self.gpus if gpu.throttled]
        if self.steal_share is not None and self.steal_share > 0.02:
            found.append(f"the host gave {self.steal_share:.0%} of the CPU time to other guests")
        if self.others_cpu > 0.25:
            found.append(f"other processes kept {self.others_cpu:.1f} cores busy")
        return found


class SystemMonitor:
    """Looks at the machine while its `with` runs; `result` says what was seen.

    Args:
        nvml: NVIDIA's management library; by default the module `pynvml`, where it is installed and answers.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml, self._why = (nvml, "watched") if nvml is not None else find_nvml()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine-watch", daemon=True)
        self._process = psutil.Process()
        self._mhz: list[float] = []
        self._rss: list[int] = []
        self._gpus: list[list[_Look]] = []
        self._looks = 0

    def __enter__(self) -> "SystemMonitor":  # noqa: PYI034 - beartype cannot check Self
        self._started = time.perf_counter()
        self._load = psutil.getloadavg()[0]
        self._cpu, self._own = psutil.cpu_times(), self._process.cpu_times()
        self._handles = self._open()
        self._gpus = [[] for _ in self._handles]
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._look()

    def result(self) -> SystemRecord:
        """Return what was seen until now."""
        seconds = time.perf_counter() - self._started
        cpu, own = psutil.cpu_times(), self._process.cpu_times()
        busy = _busy(cpu) - _busy(self._cpu) - (own.user + own.system - self._own.user - self._own.system)
        total = sum(cpu) - sum(self._cpu)
        steal = getattr(cpu, "steal", None)
        return SystemRecord(
            seconds=seconds,
            looks=self._looks,
            load_before=self._load,
            load_after=psutil.getloadavg()[0],
            cpu_mhz_min=min(self._mhz, default=None),
            cpu_mhz_max=max(self._mhz, default=None),
            steal_share=None if steal is None or total <= 0 else (steal - self._cpu.steal) / total,
            others_cpu=max(0.0, busy / seconds),
            rss_mb_peak=max(self._rss, default=0) / 1e6,
            gpus=tuple(
                _summary(self._name(handle), looks)
                for handle, looks in zip(self._handles, self._gpus, strict=True)
                if looks
            ),
            nvml=self._why,
        )

    def _work(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        self._looks += 1
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        if frequency is not None and frequency.current:
            self._mhz.append(float(frequency.current))
        self._rss.append(self._process.memory_info().rss)
        for handle, looks in zip(self._handles, self._gpus, strict=True):
            try:
                looks.append(_Look(self._nvml, handle))
            except Exception as error:  # noqa: BLE001 - NVML's errors share no base with anything of ours
                self._why = f"NVML stopped answering ({error})"

    def _open(self) -> list[Any]:
        if self._nvml is None:
            return []
        return [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())]

    def _name(self, handle: Any) -> str:
        name = self._nvml.nvmlDeviceGetName(handle)
        return name.decode() if isinstance(name, bytes) else str(name)


class _Look:
    """One GPU at one moment."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.clock = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        self.temperature = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        self.power = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        self.memory = nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6
        self.reasons = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _summary(name: str, looks: list[_Look]) -> GpuRecord:
    reasons = 0
    for look in looks:
        reasons |= look.reasons
    return GpuRecord(
        name=name,
        sm_clock_mhz_min=min(look.clock for look in looks),
        sm_clock_mhz_max=max(look.clock for look in looks),
        temperature_c_max=max(look.temperature for look in looks),
        power_w_max=max(look.power for look in looks),
        memory_mb_peak=max(look.memory for look in looks),
        throttled=tuple(words for bit, words in THROTTLING.items() if reasons & bit),
    )


def _busy(times: Any) -> float:
    """Return the seconds that cores computed for processes of this system."""
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def find_nvml() -> tuple[Any, str]:
    """Return NVIDIA's management library when it answers, and why not otherwise."""
    try:
        import pynvml  # noqa: PLC0415 - only a machine with an NVIDIA GPU has it
    except ImportError:
        return None, "not watched: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"not watched: NVML does not answer ({error})"
    return pynvml, "watched"


def process_peak_mb() -> float:
    """Return the largest resident memory this process had, 10^6 bytes.

    Linux's getrusage also counts what the process had before it became this program, its parent's memory for example;
    the high-water mark of the address space does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / BYTES_PER_MB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / BYTES_PER_MB
