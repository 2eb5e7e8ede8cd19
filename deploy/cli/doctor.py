"""`ifkd doctor`: what is installed, what will work here, and what to install for the rest."""

import argparse
from collections.abc import Callable
from typing import Any

from export.tensorrt.tensorrt_api import OLDEST_TENSORRT, release_of

ONNX_RUNTIMES_TENSORRT = 10
"""The TensorRT that the wheels of onnxruntime-gpu are linked with."""
LEAST_DRIVER = {"12": 525, "13": 580}
"""CUDA's major version -> the oldest driver's, as NVIDIA's release notes of CUDA 12.0 and 13.0 have it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: none but the common ones."""
    del parser


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Look, and say what was found. Absence is an answer, never an error."""
    from ifkd.core.environment import describe

    environment = describe()
    answer = {"environment": environment, "abilities": abilities(environment), "advice": advice(environment)}
    if not options.json:
        print(as_text(answer))  # noqa: T201
    return answer


def abilities(environment: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what will work here: ability -> {"works": bool, "because": str}."""
    packages, gpus = environment["packages"], environment["gpus"]

    def needs(*names: str) -> dict[str, Any]:
        absent = [name for name in names if name not in packages]
        return _no(f"{' and '.join(absent)} absent") if absent else _yes(_versions(packages, *names))

    runtime = next((name for name in ("onnxruntime", "onnxruntime-gpu") if name in packages), None)
    providers = _providers() if runtime else "onnxruntime absent"
    return {
        "train and distill": needs("torch", "torchvision", "timm"),
        "train on a GPU": (_yes if gpus and "torch" in packages else _no)(_gpu_words(gpus)),
        "MobileSAM's weights": _mobile_sam() if "torch" in packages else _no("torch absent"),
        "export": needs("torch", "onnx", "onnxscript", *([] if runtime else ["onnxruntime"])),
        "build portable engines (tensorrt-rtx)": needs("tensorrt-rtx"),
        "build and run TensorRT engines": _tensorrt(packages, gpus),
        "detect on the CPU (onnxruntime)": (_yes if isinstance(providers, list) else _no)(_words(providers)),
        "detect with torch": needs("torch"),
        "detect through a Triton server": needs("tritonclient"),
        "read scenes": _scenes(packages),
        "write reports": needs("jinja2"),
    }


def advice(environment: dict[str, Any]) -> list[str]:
    """Return what to mend, a sentence each."""
    packages = environment["packages"]
    found = []
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: pip uninstall one of them."
        )
    if "onnxruntime" not in packages and "onnxruntime-gpu" not in packages:
        found.append("To detect: pip install 'ifkd[cpu]'.")
    if "torch" not in packages:
        found.append("To train: pip install 'ifkd[train]'.")
    elif not _torchvision_pairs(packages):
        found.append(
            f"torchvision {packages['torchvision']} is not the one made for torch {packages['torch']}: "
            "install them together, as constraints.txt pins them."
        )
    if "torch" in packages and "onnx" not in packages:
        found.append("To export: pip install 'ifkd[export]'.")
    if environment["gpus"] and "tensorrt" not in packages:
        found.append("There is a GPU. For TensorRT: pip install 'ifkd[tensorrt]' (from NVIDIA's own package index).")
    if "tensorrt" in packages and release_of(packages["tensorrt"]) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        found.append(f"TensorRT {packages['tensorrt']} is too old: at least {oldest} is needed.")
    found += _pairings(packages, environment["gpus"])
    if "jinja2" not in packages:
        found.append("To write reports: pip install 'ifkd[report]'.")
    return found


def _pairings(packages: dict[str, str], gpus: list[dict[str, str]]) -> list[str]:
    """Return which installed versions do not go together, a sentence each."""
    found = []
    major = int(packages.get("tensorrt", "0").split(".")[0])
    if "onnxruntime-gpu" in packages and major not in (0, ONNX_RUNTIMES_TENSORRT):
        found.append(
            f"onnxruntime-gpu {packages['onnxruntime-gpu']} wants libnvinfer.so.{ONNX_RUNTIMES_TENSORRT} for its "
            f"TensorRT provider, and TensorRT {packages['tensorrt']} has libnvinfer.so.{major}: "
            "use the backend tensorrt."
        )
    cuda = packages.get("cuda-bindings", "").split(".")[0]
    needed = LEAST_DRIVER.get(cuda)
    for gpu in gpus:
        driver = gpu["driver"].split(".")[0]
        if needed is not None and driver.isdigit() and int(driver) < needed:
            found.append(
                f"The driver {gpu['driver']} of {gpu['name']} is too old for CUDA {cuda}, which cuda-bindings "
                f"{packages['cuda-bindings']} is made for: at least {needed} is needed."
            )
    return found


def as_text(answer: dict[str, Any]) -> str:
    """Return the answer as lines for a person."""
    environment = answer["environment"]
    cpu = environment["cpu"]
    lines = [
        f"python {environment['python']}, {environment['system']}",
        f"{cpu['model']}, {cpu['usable_threads']} usable threads, {environment['memory_gb']} GB",
        f"instructions: {', '.join(cpu['features']) or 'unknown'}",
        f"GPU: {_gpu_words(environment['gpus'])}",
        ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
        "",
    ]
    width = max(map(len, answer["abilities"]))
    for name, ability in answer["abilities"].items():
        lines.append(f"{'yes' if ability['works'] else 'no ':<4}{name:<{width}}  {ability['because']}")
    return "\n".join([*lines, *(["", *answer["advice"]] if answer["advice"] else [])])


def _yes(because: str) -> dict[str, Any]:
    return {"works": True, "because": because}


def _no(because: str) -> dict[str, Any]:
    return {"works": False, "because": because}


def _versions(packages: dict[str, str], *names: str) -> str:
    return ", ".join(f"{name} {packages[name]}" for name in names)


def _gpu_words(gpus: list[dict[str, str]]) -> str:
    words = [f"{gpu['name']} ({gpu['memory']}, driver {gpu['driver']}, {gpu['compute_capability']})" for gpu in gpus]
    return "; ".join(words) or "no NVIDIA GPU with a driver"


def _words(value: list[str] | str) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _attempt(look: Callable[[], Any]) -> Any:
    """Return what `look` finds, or a sentence about why it could not: a broken installation is a finding too."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001 (any failure of a foreign package is what we are here to report)
        return f"cannot be loaded ({type(error).__name__}: {error})"


def _providers() -> list[str] | str:
    def look() -> list[str]:
        import onnxruntime

        return [str(name) for name in onnxruntime.get_available_providers()]

    found: list[str] | str = _attempt(look)
    return found


def _scenes(packages: dict[str, str]) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        import rasterio

        return _yes(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}")

    if "rasterio" not in packages:
        return _no("rasterio absent")
    found = _attempt(look)
    return found if isinstance(found, dict) else _no(f"rasterio {found}")


def _tensorrt(packages: dict[str, str], gpus: list[dict[str, str]]) -> dict[str, Any]:
    absent = [] if "tensorrt" in packages else ["tensorrt absent"]
    absent += [] if "cuda-bindings" in packages or "cuda-python" in packages else ["cuda-python absent"]
    absent += [] if gpus else [_gpu_words(gpus)]
    return _no(", ".join(absent)) if absent else _yes(f"tensorrt {packages['tensorrt']} on {_gpu_words(gpus)}")


def _mobile_sam() -> dict[str, Any]:
    def look() -> dict[str, Any]:
        from ifkd.models.mobile_sam.encoder import CHECKPOINT_URL, checkpoint_place

        place = checkpoint_place()
        if place.is_file():
            return _yes(str(place))
        return _no(f"not at {place}; download {CHECKPOINT_URL} to there")

    found = _attempt(look)
    return found if isinstance(found, dict) else _no(found)


def _torchvision_pairs(packages: dict[str, str]) -> bool:
    """Return whether torchvision is absent or the one of this torch: 0.(n + 15) belongs to 2.n."""
    if "torchvision" not in packages:
        return True
    torch, vision = (packages[name].split("+")[0].split(".") for name in ("torch", "torchvision"))
    return torch[0] != "2" or vision[0] != "0" or int(vision[1]) == int(torch[1]) + 15
