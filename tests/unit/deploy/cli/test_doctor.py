"""`ifkd doctor` on machines with missing packages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import doctor
from deploy.cli.main import main

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
        ({"torch": "2.14.1"}, [], "ifkd[export]"),
    ],
)
def test_common_problems_get_advice(packages: dict[str, str], gpus: list[dict[str, str]], words: str) -> None:
    assert any(words in line for line in doctor.advice(machine(packages, gpus)))


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


def test_tensorrt_needs_package_bindings_and_gpu() -> None:
    both = {"tensorrt": "11.4.0", "cuda-python": "13.0"}
    name = "build and run TensorRT engines"
    assert doctor.abilities(machine(both, [GPU]))[name]["works"]
    assert doctor.abilities(machine(both))[name]["reason"] == "no NVIDIA GPU with a driver"
    assert doctor.abilities(machine({"tensorrt": "11.4.0"}, [GPU]))[name]["reason"] == "cuda-python absent"


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
        gpu = {"name": "NVIDIA Test", "driver": driver, "memory": "1 MiB", "compute_capability": "9.0"}
        return " ".join(doctor.advice(machine(packages, [gpu])))

    unfit = {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0", "cuda-bindings": "13.0.1"}
    assert "needs libnvinfer.so.10" in advice(unfit, "550.54")
    assert "driver 550.54 of NVIDIA Test is too old for CUDA 13" in advice(unfit, "550.54")
    fit = {"onnxruntime-gpu": "1.31.1", "tensorrt": "10.13.0", "cuda-bindings": "13.0.1"}
    assert "libnvinfer" not in advice(fit, "580.65")
    assert "too old" not in advice(fit, "580.65")
