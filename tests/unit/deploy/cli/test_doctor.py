"""`ifkd doctor` on machines with missing packages."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import doctor
from deploy.cli.main import main

ROOT = Path(__file__).parents[4]
GPU = {
    "name": "NVIDIA L4",
    "driver": "580.1",
    "memory": "23034 MiB",
    "compute_capability": "8.9",
    "max_sm_clock": "2040 MHz",
}


def machine(packages: dict[str, str], gpus: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {"packages": packages, "gpus": gpus or []}


def test_a_bare_machine_gets_advice_and_no_crash() -> None:
    bare = machine({"numpy": "2.4"})
    abilities = doctor.abilities(bare)
    assert not any(ability["works"] for ability in abilities.values())
    assert abilities["export"]["reason"] == "torch and onnx and onnxscript and onnxruntime absent"
    advice = " ".join(doctor.advice(bare))
    for extra in ("ifkd[cpu]", "ifkd[train]", "ifkd[report]"):
        assert extra in advice


@pytest.mark.parametrize(
    ("packages", "gpus", "words"),
    [
        ({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}, [], "overwrite each other"),
        ({"torch": "2.14.1+cu130", "torchvision": "0.28.0"}, [], "torchvision 0.28.0 does not belong to torch"),
        ({"tensorrt": "10.0.1"}, [], "TensorRT 10.0.1 is too old: at least 10.1"),
        ({"torch": "2.14.1"}, [GPU], "To use TensorRT"),
        ({"tensorrt-cu12": "10.0.1"}, [], "TensorRT 10.0.1 is too old: at least 10.1"),
        ({"onnxruntime-gpu": "1.31", "onnxruntime-openvino": "1.24"}, [], "overwrite each other"),
        ({"torch": "2.14.1"}, [], "ifkd[export]"),
    ],
)
def test_common_problems_get_advice(packages: dict[str, str], gpus: list[dict[str, str]], words: str) -> None:
    assert any(words in line for line in doctor.advice(machine(packages, gpus)))


def test_openvino_is_reported_with_the_type_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.engines.openvino_engine.has_bfloat16", lambda: True)
    found = doctor.abilities(machine({"openvino": "2026.4"}))["detect on the CPU (openvino)"]
    assert found["works"]
    assert re.fullmatch(r"openvino 20\S+, bfloat16", found["reason"])
    assert not doctor.abilities(machine({}))["detect on the CPU (openvino)"]["works"]


def test_a_complete_machine_gets_no_advice() -> None:
    names = [
        "torch",
        "torchvision",
        "timm",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "tensorrt-rtx",
        "jinja2",
    ]
    packages = dict.fromkeys(names, "1.0") | {"torch": "2.14.1", "torchvision": "0.29.1"}
    assert doctor.advice(machine(packages)) == []


@pytest.mark.parametrize("distribution", ["tensorrt", "tensorrt-cu12", "tensorrt-cu13"])
def test_tensorrt_needs_one_of_its_packages_bindings_and_gpu(distribution: str) -> None:
    both = {distribution: "11.4.0", "cuda-bindings": "13.0.1"}
    name = "build and run TensorRT engines"
    found = doctor.abilities(machine(both, [GPU]))[name]
    assert found["works"]
    assert found["reason"].startswith(f"{distribution} 11.4.0 on NVIDIA L4")
    assert "tensorrt" not in " ".join(doctor.advice(machine(both, [GPU]))).lower()
    assert doctor.abilities(machine(both))[name]["reason"] == "no NVIDIA GPU with a driver"
    assert doctor.abilities(machine({distribution: "11.4.0"}, [GPU]))[name]["reason"] == "cuda-bindings absent"
    old = machine({**both, "cuda-bindings": "12.8.0"}, [GPU])
    assert doctor.abilities(old)[name]["reason"] == "cuda-bindings 12.8.0 is older than 12.9.1"


@pytest.mark.parametrize("distribution", ["tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"])
def test_tensorrt_rtx_is_found_under_each_of_its_names(distribution: str) -> None:
    found = doctor.abilities(machine({distribution: "1.7.1"}))["build portable engines (tensorrt-rtx)"]
    assert found == {"works": True, "reason": f"{distribution} 1.7.1"}


@pytest.mark.parametrize(
    ("driver", "capability", "extras"),
    [
        ("580.65.06", "8.9", {"gpu", "tensorrt-cu13"}),
        ("575.57", "8.9", {"gpu-cu12", "tensorrt-cu12"}),
        ("525.60.13", "7.5", {"gpu-cu12", "tensorrt-cu12"}),
        ("580.65.06", "6.1", {"gpu-cu12"}),
        ("470.256", "8.6", set()),
    ],
)
def test_the_extras_that_fit_the_driver_are_named(driver: str, capability: str, extras: set[str]) -> None:
    gpu = {**GPU, "driver": driver, "compute_capability": capability}
    advice = doctor.advice(machine({"onnxruntime": "1.31"}, [gpu]))
    named = {word for line in advice if driver in line for word in re.findall(r"ifkd\[(.+?)\]", line)}
    assert named == extras
    assert extras <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    )
    if not extras:
        assert any(f"No extra fits the driver {driver}" in line for line in advice)


def test_onnxruntime_needs_cuda_bindings_on_a_gpu() -> None:
    advice = doctor.advice(machine({"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0"}, [GPU]))
    assert any("pip install 'ifkd[gpu]'" in line for line in advice)
    both = {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0", "cuda-bindings": "13.0.1"}
    assert not any("ifkd[gpu]" in line for line in doctor.advice(machine(both, [GPU])))


def test_an_installed_but_broken_package_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    found = doctor.abilities(machine({"onnxruntime": "1.31", "rasterio": "1.4"}))
    for name in ("detect on the CPU (onnxruntime)", "read scenes"):
        assert not found[name]["works"]
        assert "cannot be loaded" in found[name]["reason"]


def test_the_path_of_mobile_sam_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path))
    absent = doctor.abilities(machine({"torch": "2.14.1"}))["MobileSAM's weights"]
    assert not absent["works"]
    assert str(tmp_path / "mobile_sam.pt") in absent["reason"]
    (tmp_path / "mobile_sam.pt").write_bytes(b"x")
    assert doctor.abilities(machine({"torch": "2.14.1"}))["MobileSAM's weights"]["works"]


def test_the_command_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    words = capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for name, ability in result["abilities"].items():
        assert name in words
        assert ability["reason"] in words


def test_the_command_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules.update(torch=None, torchvision=None, timm=None, onnx=None)\n"
        "from deploy.cli.main import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "MobileSAM's weights" in done.stdout


def test_only_incompatible_versions_are_reported() -> None:
    def advice(packages: dict[str, str], driver: str) -> str:
        return " ".join(doctor.advice(machine(packages, [{**GPU, "driver": driver}])))

    unfit = {"onnxruntime-gpu": "1.31.1", "tensorrt-cu13": "11.4.0", "cuda-bindings": "13.0.1"}
    assert "needs libnvinfer.so.10" in advice(unfit, "550.54")
    too_new = "CUDA 13, for which tensorrt-cu13 11.4.0 and cuda-bindings 13.0.1 and onnxruntime-gpu 1.31.1 are made"
    assert f"{too_new}, is too new for the driver 550.54 of NVIDIA L4: " in advice(unfit, "550.54")
    assert "pip install 'ifkd[gpu-cu12,tensorrt-cu12]', or update the driver to 580" in advice(unfit, "550.54")
    fit = {"onnxruntime-gpu": "1.31.1", "tensorrt": "10.13.0", "cuda-bindings": "13.0.1"}
    assert "libnvinfer" not in advice(fit, "580.65")
    assert "too new" not in advice(fit, "580.65")
    older = {"onnxruntime-gpu": "1.26.0", "tensorrt-cu12": "10.13.0", "cuda-bindings": "12.9.1"}
    assert "too new" not in advice(older, "550.54")
