"""Describe hardware, driver and package versions; what is missing is left out or None, and no package is imported."""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Packages that several distributions install, each of which may be installed alone."""
PACKAGES = (
    "ifkd numpy torch torchvision timm onnx onnxscript openvino cuda-python cuda-bindings tritonclient ray rasterio "
    "pyogrio pycocotools jinja2 matplotlib"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
CPU_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimddp")
"""Instruction sets that affect the speed of convolutions."""
PROGRAM_TIMEOUT_S = 10.0


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Return versions, CPU, load, memory, GPUs and the commit of the source, as JSON values."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": installed_packages(),
        "cpu": _cpu(),
        "load_average_1min": round(psutil.getloadavg()[0], 2),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "memory_available_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "gpus": gpus(),
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "source": _source_state(),
    }


def machine_summary() -> str:
    """Return processor, threads, GPUs and main package versions in one line."""
    cpu, packages = _cpu(), installed_packages()
    parts = [f"{cpu['model']}, {usable_cores()} threads", *(gpu["name"] for gpu in gpus())]
    versions = [f"{name} {packages[name]}" for name in ("ifkd", "torch") if name in packages]
    return "; ".join([*parts, ", ".join([*versions, f"Python {platform.python_version()}"])])


def installed_packages() -> dict[str, str]:
    """Return the versions of those PACKAGES and DISTRIBUTIONS that are installed."""
    found = {}
    for name in chain(PACKAGES.split(), *DISTRIBUTIONS.values()):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def distributions_of(package: str, packages: Mapping[str, str]) -> list[str]:
    """Return which of the installed `packages` install a package, such as `tensorrt-cu12` for `tensorrt`."""
    return [name for name in DISTRIBUTIONS.get(package, (package,)) if name in packages]


def gpus() -> list[dict[str, str]]:
    """Return name, driver, memory, compute capability and maximum clock of each NVIDIA GPU, from nvidia-smi."""
    keys = ("name", "driver", "memory", "compute_capability", "max_sm_clock")
    query = "--query-gpu=name,driver_version,memory.total,compute_cap,clocks.max.sm"
    output = _output("nvidia-smi", query, "--format=csv,noheader")
    rows = [line.split(", ") for line in (output or "").splitlines() if line.strip()]
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def _cpu() -> dict[str, Any]:
    flags = (_cpu_field("flags") or _cpu_field("Features") or "").split()
    return {
        "model": _cpu_field("model name") or platform.processor() or "unknown",
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable_threads": usable_cores(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "unknown",
        "features": [name for name in CPU_FEATURES if name in flags],
    }


def _cpu_field(name: str) -> str | None:
    for line in (_read_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _source_state() -> dict[str, Any] | None:
    """Return the commit and the number of changed files of the checkout; None for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(folder), "status", "--porcelain")
    return None if changes is None else {"commit": commit, "changed_files": len(changes.splitlines())}


def _output(program: str, *arguments: str) -> str | None:
    """Return the standard output of a program; None if it is missing or fails."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        completed = subprocess.run(  # noqa: S603 (a fixed program with fixed arguments)
            [path, *arguments], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return completed.stdout.strip()


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
