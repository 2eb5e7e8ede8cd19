"""Two processes under torchrun: one with all the images would have learned the same, and rank 0 alone writes."""

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

from ifkd.core.config import parse
from ifkd.models import build_detector
from ifkd.models.checkpoint import CheckpointMeta, save_checkpoint
from ifkd.recipe import Recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> Path:
    """A folder with data, a recipe whose batch norm does not depend on its batch, and a teacher of random weights."""
    folder = tmp_path_factory.mktemp("parallel")
    values = make_recipe(folder)
    values["student"]["detector"].update(norm="frozen")
    values["distillation"]["training"]["optimizer"].update(name="sgd", learning_rate=0.01, grad_clip=1.0)
    values["distillation"]["training"]["ema_decay"] = 0.9
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


def start(world: Path, name: str, *words: str, processes: int) -> "subprocess.Popen[str]":
    """Start `ifkd distill` in so many processes, in a process group of their own."""
    verb = ["-m", "ifkd", "distill", "tiny.toml", "--teacher", "teacher.safetensors", "--out", name, *words]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, *verb],
        cwd=world,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def distill(world: Path, name: str, *words: str, processes: int) -> "subprocess.CompletedProcess[str]":
    """Run `ifkd distill` in so many processes to its end."""
    running = start(world, name, *words, processes=processes)
    output, errors = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, output, errors)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(world: Path) -> tuple[Path, Path]:
    """The folders of one process's run and of two processes' run."""
    for name, processes in (("one", 1), ("two", 2)):
        done = distill(world, name, processes=processes)
        assert done.returncode == 0, done.stderr
    return world / "one", world / "two"


def test_two_processes_take_the_steps_of_one(runs: tuple[Path, Path]) -> None:
    """Same losses and same gradient at the first step, hence the same normalizers; and the same weights at the end."""
    one, two = (told(folder) for folder in runs)
    assert [set(entry) for entry in one] == [set(entry) for entry in two]
    first, second = (next(entry for entry in lines if "total" in entry) for lines in (one, two))
    for name in ("total", "gradient_norm", "raw/feature", "raw/head"):
        assert second[name] == pytest.approx(first[name], rel=2e-5), name
    alone, shared = (load_file(folder / "last.safetensors") for folder in runs)
    assert list(alone) == list(shared)
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_validation_is_shared_out_and_exact(runs: tuple[Path, Path]) -> None:
    """Before the first step the weights are the same to the bit, and so are the metrics."""
    one, two = (next(entry for entry in told(folder) if "validation" in entry) for folder in runs)
    assert one["epoch"] == 0
    assert one == two


def test_rank_0_alone_writes(runs: tuple[Path, Path]) -> None:
    names = [sorted(path.name for path in folder.iterdir()) for folder in runs]
    assert names[0] == names[1]
    assert len([entry for entry in told(runs[1]) if "total" in entry]) == 4
    assert len(list((runs[1] / "events").iterdir())) == 1


def test_a_killed_run_of_two_processes_goes_on_with_one(world: Path) -> None:
    """SIGKILL to launcher and processes in the middle; what the state holds does not depend on how many made it."""
    words = ("distillation.training.epochs=30", "distillation.training.save_every_minutes=0")
    running = start(world, "killed", *words, processes=2)
    while not (world / "killed" / "state.pt").is_file():
        assert running.poll() is None
        time.sleep(0.05)
    launcher = psutil.Process(running.pid)
    everyone = [launcher, *launcher.children(recursive=True)]
    for process in everyone:
        process.kill()
    psutil.wait_procs(everyone)
    running.communicate()
    assert not (world / "killed" / "result.json").exists()
    done = distill(world, "killed", *words, "distillation.training.epochs=30", processes=1)
    assert done.returncode == 0, done.stderr
    steps = [entry["iteration"] for entry in told(world / "killed") if "iteration" in entry]
    assert steps == list(range(60))


def test_a_folder_in_which_another_process_trains_is_refused(world: Path) -> None:
    words = ("distillation.training.epochs=40", "distillation.training.save_every_minutes=0")
    running = start(world, "busy", *words, processes=1)
    while not (world / "busy" / "state.pt").is_file():
        assert running.poll() is None
        time.sleep(0.05)
    done = distill(world, "busy", *words, processes=1)
    assert running.poll() is None
    for process in psutil.Process(running.pid).children(recursive=True):
        process.kill()
    running.communicate()
    assert "is writing into busy. Wait until it ends" in done.stderr


def test_a_batch_that_cannot_be_shared_is_refused(world: Path) -> None:
    done = distill(world, "odd", "distillation.training.batch_size=3", processes=2)
    assert done.returncode != 0
    assert "training.batch_size cannot be shared out evenly: got 3 images" in done.stderr
    assert not (world / "odd" / "metrics.jsonl").exists()
