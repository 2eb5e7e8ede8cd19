"""Description of hardware, packages and source."""

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest

from ifkd.core import environment

GPU = {
    "name": "NVIDIA L4",
    "driver": "580.1",
    "memory": "23034 MiB",
    "compute_capability": "8.9",
    "max_sm_clock": "2040 MHz",
}


def test_the_environment_is_json() -> None:
    found = environment.describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert found["cpu"]["usable_threads"] >= 1
    assert {"python", "system", "load_average_1min", "memory_gb", "gpus", "source"} <= set(found)


def test_packages_with_several_names_are_found_under_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in {"tensorrt-cu12", "onnxruntime-gpu", "onnxruntime"}:
            return "10.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", version)
    packages = environment.installed_packages()
    assert packages == dict.fromkeys(["onnxruntime", "onnxruntime-gpu", "tensorrt-cu12"], "10.1")
    found = {name: environment.distributions_of(name, packages) for name in ("tensorrt", "onnxruntime", "torch")}
    assert found == {"tensorrt": ["tensorrt-cu12"], "onnxruntime": ["onnxruntime", "onnxruntime-gpu"], "torch": []}


def test_the_environment_has_no_personal_paths() -> None:
    text = json.dumps(environment.describe_environment())
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text


def test_missing_programs_and_files_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = environment.describe_environment()
    assert found["gpus"] == []
    assert found["source"] is None
    monkeypatch.setattr(environment, "_read_text", lambda _: None)
    cpu = environment.describe_environment()["cpu"]
    assert cpu["governor"] == "unknown"
    assert cpu["features"] == []


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA L4, 580.1, 23034 MiB, 8.9, 2040 MHz"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert environment.gpus() == [GPU]
    program.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert environment.gpus() == []
    program.write_text("#!/bin/sh\necho 'another format'\n")
    assert environment.gpus() == []


def test_the_commit_and_the_changed_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        completed = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return completed.stdout.strip()

    (tmp_path / "ifkd" / "core").mkdir(parents=True)
    (tmp_path / "ifkd" / "core" / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "ifkd" / "core" / "environment.py"))
    assert environment.describe_environment()["source"] is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    assert environment.describe_environment()["source"] == {"commit": git("rev-parse", "HEAD"), "changed_files": 0}
    (tmp_path / "new").write_text("x")
    assert environment.describe_environment()["source"]["changed_files"] == 1
