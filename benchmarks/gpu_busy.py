"""Share of the time in which a GPU is busy, and memory in use, for benchmarks/gpu.py."""

import contextlib
import threading
from typing import Any, Self

import numpy as np
import psutil

from deploy.bench.system_monitor import load_nvml

POLL_S = 0.05


class BusyShare:
    """Share of the time in which the first GPU ran a kernel, sampled by NVML in a thread."""

    def __init__(self) -> None:
        self._nvml, self._state = load_nvml()
        self._percent: list[int] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """Return the mean share, also from the first to the last busy sample, or the reason why there is none."""
        if not self._percent:
            return {"mean": None, "reason": self._state}
        active = np.flatnonzero(self._percent)
        between = self._percent[active[0] : active[-1] + 1] if len(active) else []
        return {
            "mean": float(np.mean(self._percent)) / 100,
            "mean_from_first_to_last_busy": float(np.mean(between)) / 100 if len(between) else 0.0,
            "samples": len(self._percent),
        }

    def _sample(self) -> None:
        while self._nvml is not None and not self._stopped.wait(POLL_S):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            self._percent.append(int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu))


def memory_mb() -> dict[str, float]:
    """Return the resident memory of this process and, with NVML, the memory in use on the first GPU, 10^6 bytes."""
    found = {"host": psutil.Process().memory_info().rss / 1e6}
    with contextlib.suppress(Exception):  # without NVML, only the host is known
        import pynvml  # noqa: PLC0415

        pynvml.nvmlInit()
        found["gpu"] = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 1e6
    return found
