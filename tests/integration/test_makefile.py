"""The Makefile's steps, with a program in place of `ifkd` that notes its arguments and writes what is expected."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """#!/bin/sh
echo "$@" >> commands.txt
command=$1
while [ $# -gt 1 ]; do [ "$1" = --out ] && out=$2; shift; done
case $command in
  data) mkdir -p $out && touch $out/train.json ;;
  train | distill) mkdir -p $out && touch $out/result.json ;;
  export) mkdir -p $out && touch $out/config.toml $out/model.json ;;
  detect) mkdir -p $out && touch $out/run.json ;;
  report) mkdir -p $out && echo {} > $out/report.json ;;
  engine) echo {} ;;
  *) mkdir -p $(dirname $out) && echo {} > $out ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    program = tmp_path / ".venv" / "bin" / "ifkd"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


def commands(folder: Path, *arguments: str) -> list[str]:
    """Run `make`, and return the commands of `ifkd` that it ran, without those of earlier calls."""
    log = folder / "commands.txt"
    log.unlink(missing_ok=True)
    subprocess.run(["make", *arguments], cwd=folder, check=True, capture_output=True)
    return log.read_text().splitlines() if log.is_file() else []


def test_results_are_made_once_and_again_for_another_scene_backend_or_builder(folder: Path) -> None:
    first = [line.split()[0] for line in commands(folder, "report")]
    assert sorted(first) == sorted(
        [
            "data",
            "train",
            "train",
            "distill",
            *["evaluate"] * 3,
            "export",
            "engine",
            "detect",
            "bench",
            "parity",
            "report",
        ]
    )
    assert commands(folder, "report") == []
    (detect,) = commands(folder, "detect", "SCENE=other.tif")
    assert detect.startswith("detect runs/demo/bundle other.tif ")
    assert commands(folder, "detect", "SCENE=other.tif") == []
    again = commands(folder, "bench", "BACKEND=tensorrt", "SCENE=other.tif")
    assert [line.split()[0] for line in again] == ["bench"]
    assert "--backend tensorrt" in again[0]
    again = commands(folder, "engine", "BUILDER=tensorrt")
    assert again == ["engine runs/demo/bundle --builder tensorrt --json"]


def test_what_is_timed_does_not_run_beside_anything(folder: Path) -> None:
    """With two jobs at once, as in the demonstration: the export times INT8, and bench measures latency."""
    (folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\n")
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    order = [line.split()[0] for line in commands(folder, "--jobs", "2", "STAGES=stages.json", "report")]
    evaluations = [index for index, name in enumerate(order) if name == "evaluate"]
    assert order.index("export") < evaluations[-1] < order.index("bench")
    assert order.index("detect") < order.index("bench") < order.index("parity") < order.index("report")
