"""`ifkd doctor`: report what is installed, what works on this machine and what to install."""

import argparse
from collections.abc import Callable
from typing import Any

from deploy.cli import Arguments
from export.tensorrt.tensorrt_api import OLDEST_TENSORRT, release_of

ONNXRUNTIME_TENSORRT = 10
"""Major version of TensorRT that the wheels of onnxruntime-gpu are linked with."""
MIN_DRIVER = {"12": 525, "13": 580}
"""Major version of CUDA -> oldest driver, from NVIDIA's release notes of CUDA 12.0 and 13.0."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments besides the common ones."""
    del parser


def run(arguments: Arguments) -> dict[str, Any]:
    """Report the environment; a missing package is part of the result, not an error."""
    from ifkd.core.environment import describe_environment

    environment = describe_environment()
    result = {"environment": environment, "abilities": abilities(environment), "advice": advice(environment)}
    if not arguments.json:
        print(as_text(result))  # noqa: T201
    return result


def abilities(environment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what works on this machine: ability -> {"works": bool, "reason": str}."""
    packages, gpus = environment["packages"], environment["gpus"]

    def needs(*names: str) -> dict[str, Any]:
        absent = [name for name in names if name not in packages]
        versions = ", ".join(f"{name} {packages.get(name)}" for name in names)
        return _no(f"{' and '.join(absent)} absent") if absent else _yes(versions)

    runtime = next((name for name in ("onnxruntime", "onnxruntime-gpu") if name in packages), None)
    return {
        "train and distill": needs("torch", "torchvision", "timm"),
        "train on a GPU": (_yes if gpus and "torch" in packages else _no)(_gpu_words(gpus)),
        "MobileSAM's weights": _attempt(_mobile_sam) if "torch" in packages else _no("torch absent"),
        "export": needs("torch", "onnx", "onnxscript", *([] if runtime else ["onnxruntime"])),
        "build portable engines (tensorrt-rtx)": needs("tensorrt-rtx"),
        "build and run TensorRT engines": _tensorrt(packages, gpus),
        "detect on the CPU (onnxruntime)": _attempt(_providers) if runtime else _no("onnxruntime absent"),
        "detect with torch": needs("torch"),
        "detect through a Triton server": needs("tritonclient"),
        "read scenes": _attempt(_scenes, name="rasterio ") if "rasterio" in packages else _no("rasterio absent"),
        "write reports": needs("jinja2"),
    }


def advice(environment: dict[str, Any]) -> list[str]:
    """Return what to install or change, one sentence each."""
    packages = environment["packages"]
    runtimes = {"onnxruntime", "onnxruntime-gpu"} & packages.keys()
    found = []
    if len(runtimes) == 2:
        both = "onnxruntime and onnxruntime-gpu are both installed"
        found.append(f"{both} and overwrite each other: pip uninstall one of them.")
    if not runtimes:
        found.append("To detect: pip install 'ifkd[cpu]'.")
    if "torch" not in packages:
        found.append("To train: pip install 'ifkd[train]'.")
    elif not _torchvision_fits(packages):
        problem = f"torchvision {packages['torchvision']} does not belong to torch {packages['torch']}"
        found.append(f"{problem}: install them together, as constraints.txt pins them.")
    if "torch" in packages and "onnx" not in packages:
        found.append("To export: pip install 'ifkd[export]'.")
    if environment["gpus"] and "tensorrt" not in packages:
        source = "(from NVIDIA's own package index)"
        found.append(f"This machine has a GPU. To use TensorRT: pip install 'ifkd[tensorrt]' {source}.")
    if "tensorrt" in packages and release_of(packages["tensorrt"]) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        found.append(f"TensorRT {packages['tensorrt']} is too old: at least {oldest} is needed.")
    found += _incompatible_versions(packages, environment["gpus"])
    if "jinja2" not in packages:
        found.append("To write reports: pip install 'ifkd[report]'.")
    return found


def _incompatible_versions(packages: dict[str, str], gpus: list[dict[str, str]]) -> list[str]:
    """Return the installed versions that are incompatible, one sentence each."""
    found = []
    major = int(packages.get("tensorrt", "0").split(".")[0])
    if "onnxruntime-gpu" in packages and major not in (0, ONNXRUNTIME_TENSORRT):
        needs = f"onnxruntime-gpu {packages['onnxruntime-gpu']} needs libnvinfer.so.{ONNXRUNTIME_TENSORRT}"
        has = f"TensorRT {packages['tensorrt']} has libnvinfer.so.{major}"
        found.append(f"{needs} for its TensorRT provider, and {has}: use the backend tensorrt.")
    cuda = packages.get("cuda-bindings", "").split(".")[0]
    needed = MIN_DRIVER.get(cuda)
    for gpu in gpus:
        driver = gpu["driver"].split(".")[0]
        if needed is not None and driver.isdigit() and int(driver) < needed:
            old = f"The driver {gpu['driver']} of {gpu['name']} is too old for CUDA {cuda}"
            wanted = f"which cuda-bindings {packages['cuda-bindings']} is made for"
            found.append(f"{old}, {wanted}: at least {needed} is needed.")
    return found


def as_text(result: dict[str, Any]) -> str:
    """Return the result as text."""
    environment = result["environment"]
    cpu = environment["cpu"]
    lines = [
        f"python {environment['python']}, {environment['system']}",
        f"{cpu['model']}, {cpu['usable_threads']} usable threads, {environment['memory_gb']} GB",
        f"instructions: {', '.join(cpu['features']) or 'unknown'}",
        f"GPU: {_gpu_words(environment['gpus'])}",
        ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
        "",
    ]
    width = max(map(len, result["abilities"]))
    for name, ability in result["abilities"].items():
        lines.append(f"{'yes' if ability['works'] else 'no ':<4}{name:<{width}}  {ability['reason']}")
    return "\n".join([*lines, *(["", *result["advice"]] if result["advice"] else [])])


def _yes(reason: str) -> dict[str, Any]:
    return {"works": True, "reason": reason}


def _no(reason: str) -> dict[str, Any]:
    return {"works": False, "reason": reason}


def _gpu_words(gpus: list[dict[str, str]]) -> str:
    words = [f"{gpu['name']} ({gpu['memory']}, driver {gpu['driver']}, {gpu['compute_capability']})" for gpu in gpus]
    return "; ".join(words) or "no NVIDIA GPU with a driver"


def _attempt(find: Callable[[], dict[str, Any]], *, name: str = "") -> dict[str, Any]:
    """Return the ability that `find` returns; where it fails, the ability is absent."""
    try:
        return find()
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        return _no(f"{name}cannot be loaded ({type(error).__name__}: {error})")


def _providers() -> dict[str, Any]:
    import onnxruntime

    return _yes(", ".join(map(str, onnxruntime.get_available_providers())))


def _scenes() -> dict[str, Any]:
    import rasterio

    return _yes(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")


def _tensorrt(packages: dict[str, str], gpus: list[dict[str, str]]) -> dict[str, Any]:
    absent = [] if "tensorrt" in packages else ["tensorrt absent"]
    absent += [] if "cuda-bindings" in packages or "cuda-python" in packages else ["cuda-python absent"]
    absent += [] if gpus else [_gpu_words(gpus)]
    return _no(", ".join(absent)) if absent else _yes(f"tensorrt {packages['tensorrt']} on {_gpu_words(gpus)}")


def _mobile_sam() -> dict[str, Any]:
    from ifkd.models.mobile_sam.encoder import CHECKPOINT_URL, default_checkpoint_path

    path = default_checkpoint_path()
    return _yes(str(path)) if path.is_file() else _no(f"absent; download {CHECKPOINT_URL} to {path}")


def _torchvision_fits(packages: dict[str, str]) -> bool:
    """Return whether torchvision is absent or belongs to this torch: 0.(n + 15) belongs to 2.n."""
    if "torchvision" not in packages:
        return True
    torch, vision = (packages[name].split("+")[0].split(".") for name in ("torch", "torchvision"))
    return torch[0] != "2" or vision[0] != "0" or int(vision[1]) == int(torch[1]) + 15
