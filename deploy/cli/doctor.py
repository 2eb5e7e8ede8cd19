"""`ifkd doctor`: report what is installed, what works on this machine and what to install."""

import argparse
from collections.abc import Callable
from typing import Any

from deploy.cli import Arguments
from export.tensorrt.tensorrt_api import OLDEST_CUDA_BINDINGS, OLDEST_TENSORRT, release_of
from ifkd.core.environment import distributions_of

ONNXRUNTIME_TENSORRT = 10
"""Major version of TensorRT that the wheels of onnxruntime-gpu are linked with."""
ONNXRUNTIME_CUDA_13 = (1, 27)
"""First version of onnxruntime-gpu whose wheels are for CUDA 13."""
MIN_DRIVER = {13: 580, 12: 525}
"""Major version of CUDA -> oldest driver, from NVIDIA's release notes of CUDA 12.0 and 13.0."""
MIN_CAPABILITY = (7, 5)
"""Oldest compute capability of CUDA 13 and of the present TensorRT."""
GPU_EXTRAS = {13: "gpu", 12: "gpu-cu12"}
"""Major version of CUDA -> extra with ONNX Runtime."""


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
        found = {name: distributions_of(name, packages) for name in names}
        absent = [name for name, distributions in found.items() if not distributions]
        versions = ", ".join(f"{one[0]} {packages[one[0]]}" for one in found.values() if one)
        return _no(f"{' and '.join(absent)} absent") if absent else _yes(versions)

    runtime = distributions_of("onnxruntime", packages)
    return {
        "train and distill": needs("torch", "torchvision", "timm"),
        "train on a GPU": (_yes if gpus and "torch" in packages else _no)(_gpu_words(gpus)),
        "MobileSAM's weights": _attempt(_mobile_sam) if "torch" in packages else _no("torch absent"),
        "export": needs("torch", "onnx", "onnxscript", "onnxruntime"),
        "build portable engines (tensorrt-rtx)": needs("tensorrt-rtx"),
        "build and run TensorRT engines": _tensorrt(packages, gpus),
        "detect on the CPU (onnxruntime)": _attempt(_providers) if runtime else _no("onnxruntime absent"),
        "detect on the CPU (openvino)": _attempt(_openvino) if "openvino" in packages else _no("openvino absent"),
        "detect with torch": needs("torch"),
        "detect through a Triton server": needs("tritonclient"),
        "read scenes": _attempt(_scenes, name="rasterio ") if "rasterio" in packages else _no("rasterio absent"),
        "write reports": needs("jinja2"),
    }


def advice(environment: dict[str, Any]) -> list[str]:
    """Return what to install or change, one sentence each."""
    packages, gpus = environment["packages"], environment["gpus"]
    runtimes = distributions_of("onnxruntime", packages)
    found = []
    if len(runtimes) > 1:
        found.append(f"{' and '.join(runtimes)} are installed and overwrite each other: pip uninstall all but one.")
    if not runtimes:
        found.append("To detect: pip install 'ifkd[cpu]'.")
    if "torch" not in packages:
        found.append("To train: pip install 'ifkd[train]'.")
    elif not _torchvision_fits(packages):
        problem = f"torchvision {packages['torchvision']} does not belong to torch {packages['torch']}"
        found.append(f"{problem}: install them together, as constraints.txt pins them.")
    if "torch" in packages and "onnx" not in packages:
        found.append("To export: pip install 'ifkd[export]'.")
    found += [line for gpu in gpus[:1] for line in _gpu_advice(gpu, packages)]
    tensorrt = next((packages[name] for name in distributions_of("tensorrt", packages)), None)
    if tensorrt is not None and release_of(tensorrt) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        found.append(f"TensorRT {tensorrt} is too old: at least {oldest} is needed.")
    if tensorrt is not None and "onnxruntime-gpu" in packages and release_of(tensorrt)[0] != ONNXRUNTIME_TENSORRT:
        needs = f"onnxruntime-gpu {packages['onnxruntime-gpu']} needs libnvinfer.so.{ONNXRUNTIME_TENSORRT}"
        has = f"TensorRT {tensorrt} has libnvinfer.so.{release_of(tensorrt)[0]}"
        found.append(f"{needs} for its TensorRT provider, and {has}: use the backend tensorrt.")
    if "jinja2" not in packages:
        found.append("To write reports: pip install 'ifkd[report]'.")
    return found


def cuda_of_driver(gpu: dict[str, str]) -> int | None:
    """Return the latest major version of CUDA that a GPU and its driver run; None for a driver that is too old."""
    driver, capability = release_of(gpu["driver"])[0], release_of(gpu["compute_capability"])
    fitting = (cuda for cuda, oldest in MIN_DRIVER.items() if driver >= oldest)
    return next((cuda for cuda in fitting if cuda < 13 or capability >= MIN_CAPABILITY), None)


def _gpu_advice(gpu: dict[str, str], packages: dict[str, str]) -> list[str]:
    """Return which extras fit a GPU and its driver, and which installed packages do not."""
    cuda, driver = cuda_of_driver(gpu), f"the driver {gpu['driver']} of {gpu['name']}"
    if cuda is None:
        return [f"No extra fits {driver}: at least {min(MIN_DRIVER.values())} is needed."]
    found = []
    if not {"onnxruntime-gpu", "cuda-bindings"} <= packages.keys():
        found.append(f"To use the GPU with ONNX Runtime: pip install 'ifkd[{GPU_EXTRAS[cuda]}]', which fits {driver}.")
    if not distributions_of("tensorrt", packages) and release_of(gpu["compute_capability"]) >= MIN_CAPABILITY:
        source = "from NVIDIA's own package index"
        found.append(f"To use TensorRT: pip install 'ifkd[tensorrt-cu{cuda}]' ({source}), which fits {driver}.")
    newer = {name: major for name, major in _cuda_of_packages(packages).items() if major > cuda}
    if newer:
        names = " and ".join(f"{name} {packages[name]}" for name in newer)
        major, extras = max(newer.values()), f"ifkd[{GPU_EXTRAS[cuda]},tensorrt-cu{cuda}]"
        update = f", or update the driver to {MIN_DRIVER[major]}" if major in MIN_DRIVER else ""
        found.append(
            f"CUDA {major}, for which {names} are made, is too new for {driver}: pip install '{extras}'{update}."
        )
    return found


def _cuda_of_packages(packages: dict[str, str]) -> dict[str, int]:
    """Return the major version of CUDA that installed packages are made for."""
    found = {name: int(name[-2:]) for name in distributions_of("tensorrt", packages) if name[-2:].isdigit()}
    if "cuda-bindings" in packages:
        found["cuda-bindings"] = release_of(packages["cuda-bindings"])[0]
    if "onnxruntime-gpu" in packages:
        found["onnxruntime-gpu"] = 13 if release_of(packages["onnxruntime-gpu"]) >= ONNXRUNTIME_CUDA_13 else 12
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


def _openvino() -> dict[str, Any]:
    import openvino

    from deploy.engines.openvino_engine import has_bfloat16

    version = openvino.__version__.split("-")[0]
    return _yes(f"openvino {version}, {'bfloat16' if has_bfloat16() else 'no bfloat16'}")


def _scenes() -> dict[str, Any]:
    import rasterio

    return _yes(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")


def _tensorrt(packages: dict[str, str], gpus: list[dict[str, str]]) -> dict[str, Any]:
    tensorrt = distributions_of("tensorrt", packages)
    absent = [] if tensorrt else ["tensorrt absent"]
    bindings, oldest = packages.get("cuda-bindings"), ".".join(map(str, OLDEST_CUDA_BINDINGS))
    if bindings is None:
        absent.append("cuda-bindings absent")
    elif release_of(bindings, numbers=3) < OLDEST_CUDA_BINDINGS:
        absent.append(f"cuda-bindings {bindings} is older than {oldest}")
    absent += [] if gpus else [_gpu_words(gpus)]
    return _no(", ".join(absent)) if absent else _yes(f"{tensorrt[0]} {packages[tensorrt[0]]} on {_gpu_words(gpus)}")


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
