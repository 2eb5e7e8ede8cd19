"""The extras for NVIDIA GPUs resolve: pip finds versions of all their packages that fit each other, without a GPU.

TensorRT's libraries are on NVIDIA's own index alone, so a wheel without content stands for them. That they install, and
run, is not tested.
"""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from export.tensorrt.tensorrt_api import OLDEST_CUDA_BINDINGS, release_of

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
ONNXRUNTIME_LIBRARIES = ("cublas", "cuda-nvrtc", "cuda-runtime", "cudnn", "cufft", "curand", "nvjitlink")
"""What the CUDA provider of ONNX Runtime loads."""


def pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "20", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_stand_in(folder: Path, name: str, version: str) -> None:
    """Write a wheel without content."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's wheels are for Linux")
@pytest.mark.parametrize(("cuda", "extras"), [(12, ("gpu-cu12", "tensorrt-cu12")), (13, ("gpu", "tensorrt-cu13"))])
def test_the_extras_of_a_gpu_fit_each_other(cuda: int, extras: tuple[str, ...], tmp_path: Path) -> None:
    libraries = f"tensorrt_cu{cuda}_libs"
    listed = pip("index", "versions", libraries, "--json")
    if listed.returncode != 0:
        pytest.skip(f"no package index: {listed.stderr.strip().splitlines()[-1:]}")
    newest: str = json.loads(listed.stdout)["latest"]
    write_stand_in(tmp_path, libraries, newest)
    requirements = [*PROJECT["dependencies"]]
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    report = tmp_path / "resolved.json"
    options = ("--quiet", "--dry-run", "--ignore-installed", "--find-links", str(tmp_path), "--only-binary", libraries)
    done = pip("install", *options, "--report", str(report), *requirements)
    assert done.returncode == 0, done.stderr

    installs: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    found = {one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"] for one in installs}
    runtime, bindings = release_of(found["onnxruntime-gpu"]), release_of(found["cuda-bindings"], numbers=3)
    assert (runtime >= (1, 27)) == (cuda == 13)
    assert bindings[0] == cuda
    assert bindings >= OLDEST_CUDA_BINDINGS
    parts = ("", "-bindings", "-libs")
    assert {found[f"tensorrt-cu{cuda}{part}"] for part in parts} == {newest}
    for name in ONNXRUNTIME_LIBRARIES:
        (package,) = (one for one in found if one.startswith(f"nvidia-{name}"))
        assert package.endswith("-cu12") == (cuda == 12)  # of those for CUDA 13, few have a suffix
