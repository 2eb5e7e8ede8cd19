"""Data-parallel training by torchrun equals training in one process, and only rank 0 writes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from deploy.cli.main import main
from ifkd.core.config import parse
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> Path:
    """A folder with data, a recipe with frozen batch norm, and an untrained teacher."""
    folder = tmp_path_factory.mktemp("parallel")
    values = make_recipe(folder)
    values["student"]["detector"].update(norm="frozen")
    values["distillation"]["training"]["optimizer"].update(name="sgd", learning_rate=0.01, grad_clip=1.0)
    values["distillation"]["training"]["ema_decay"] = 0.9
    values["distillation"]["balance"] = {"form": "gradient"}
    for role in ("teacher", "student"):
        values[role]["detector"]["head_init"] = "kaiming"  # logits that differ, so that the head's loss has a gradient
    settings = parse(values, Recipe, source="values")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = build_detector(settings.teacher.detector, 3)
    meta = CheckpointMeta(
        detector=settings.teacher.detector,
        classes=("barge", "ferry", "tug"),
        category_ids=(3, 7, 9),
        recipe=settings,
        provenance={"role": "teacher"},
    )
    save_checkpoint(folder / "teacher.safetensors", teacher, meta)
    (folder / "tiny.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return folder


def start(setup: Path, name: str, *overrides: str, processes: int) -> "subprocess.Popen[str]":
    """Start `ifkd distill` in several processes, in their own process group."""
    command = ["-m", "ifkd", "distill", "tiny.toml", "--teacher", "teacher.safetensors", "--out", name, *overrides]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        cwd=setup,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def distill_here(setup: Path, name: str, *overrides: str) -> int:
    """Run `ifkd distill` in this process and return its exit code."""
    with contextlib.chdir(setup):
        return main(["distill", "tiny.toml", "--teacher", "teacher.safetensors", "--out", name, *overrides])


def distill(setup: Path, name: str, *overrides: str, processes: int) -> "subprocess.CompletedProcess[str]":
    """Run `ifkd distill` in several processes."""
    running = start(setup, name, *overrides, processes=processes)
    output, errors = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, output, errors)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(setup: Path) -> tuple[Path, Path]:
    """The folders of a run with one process and of a run with two processes."""
    done = distill(setup, "two", processes=2)
    assert done.returncode == 0, done.stderr
    assert distill_here(setup, "one") == 0
    return setup / "one", setup / "two"


def test_two_processes_train_like_one(runs: tuple[Path, Path]) -> None:
    """Losses and gradient of the first step, and the final weights."""
    one, two = (entries(folder) for folder in runs)
    assert [set(entry) for entry in one] == [set(entry) for entry in two]
    first, second = (next(entry for entry in lines if "total" in entry) for lines in (one, two))
    for name in ("total", "grad_norm", "raw/feature", "raw/head", "factor/feature", "factor/head"):
        assert second[name] == pytest.approx(first[name], rel=2e-5), name
    alone, shared = (load_file(folder / "last.safetensors") for folder in runs)
    assert list(alone) == list(shared)
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_layers_of_terms_without_weight_are_left_out(setup: Path) -> None:
    """As in the ablation's row of attention transfer alone, which does not use IFKD's layers."""
    off = tuple(f"distillation.method.{name}=0" for name in ("alpha", "beta"))
    overrides = (*off, "distillation.method.with_at=true")
    done = distill(setup, "at_of_two", *overrides, processes=2)
    assert done.returncode == 0, done.stderr
    assert distill_here(setup, "at_of_one", *overrides) == 0
    alone, shared = (load_file(setup / name / "last.safetensors") for name in ("at_of_one", "at_of_two"))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["pkd", "crosskd"])
def test_two_processes_standardize_like_one(setup: Path, name: str) -> None:
    """Means and deviations of a method are those of all images."""
    method = f'distillation.method={{name="{name}"}}'
    done = distill(setup, f"{name}_of_two", method, processes=2)
    assert done.returncode == 0, done.stderr
    assert distill_here(setup, f"{name}_of_one", method) == 0
    one, two = (
        next(entry for entry in entries(setup / f"{name}_of_{count}") if "total" in entry) for count in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-4)


def test_validation_in_two_processes_is_exact(runs: tuple[Path, Path]) -> None:
    """Before the first step the weights are equal, so the metrics are equal to the bit."""
    one, two = (next(entry for entry in entries(folder) if "validation" in entry) for folder in runs)
    assert one["epoch"] == 0
    assert one == two


def test_only_rank_0_writes(runs: tuple[Path, Path]) -> None:
    names = [sorted(path.name for path in folder.iterdir()) for folder in runs]
    assert names[0] == names[1]
    assert len([entry for entry in entries(runs[1]) if "total" in entry]) == 4
    assert len(list((runs[1] / "events").iterdir())) == 1


def test_a_killed_run_of_two_processes_resumes_with_one(setup: Path) -> None:
    """SIGKILL of launcher and processes; the state does not depend on the number of processes."""
    overrides = ("distillation.training.epochs=30", "distillation.training.save_every_minutes=0")
    running = start(setup, "killed", *overrides, processes=2)
    while not (setup / "killed" / "state.pt").is_file():
        assert running.poll() is None
        time.sleep(0.05)
    launcher = psutil.Process(running.pid)
    tree = [launcher, *launcher.children(recursive=True)]
    for process in tree:
        process.kill()
    psutil.wait_procs(tree)
    running.communicate()
    assert not (setup / "killed" / "result.json").exists()
    assert distill_here(setup, "killed", *overrides) == 0
    steps = [entry["iteration"] for entry in entries(setup / "killed") if "iteration" in entry]
    assert steps == list(range(60))


def test_a_folder_of_another_process_is_refused(setup: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("distillation.training.epochs=40", "distillation.training.save_every_minutes=0")
    running = start(setup, "busy", *overrides, processes=1)
    while not (setup / "busy" / "state.pt").is_file():
        assert running.poll() is None
        time.sleep(0.05)
    assert distill_here(setup, "busy", *overrides) == 2
    assert running.poll() is None
    for process in psutil.Process(running.pid).children(recursive=True):
        process.kill()
    running.communicate()
    assert "is writing into busy.\nhint: Wait until it ends" in capsys.readouterr().err


def test_a_batch_that_cannot_be_split_is_refused(setup: Path) -> None:
    done = distill(setup, "odd", "distillation.training.batch_size=3", processes=2)
    assert done.returncode != 0
    assert "training.batch_size cannot be split evenly: got 3 images" in done.stderr
    assert not (setup / "odd" / "metrics.jsonl").exists()
