"""Concurrent runs of a study: GPUs, threads and failures."""

import subprocess
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from ifkd.core.errors import TrainingError
from ifkd.study.run_launcher import RunLauncher


@pytest.mark.parametrize(("gpus", "seen"), [(4, {"0,1", "2,3"}), (2, {"0,1"}), (0, {None})])
def test_concurrent_runs_get_their_own_gpus_while_there_are_enough(
    gpus: int, seen: set[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, visible = Barrier(2, timeout=60), []

    def run(_: list[str], *, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[bytes]:
        visible.append(env.get("CUDA_VISIBLE_DEVICES"))
        together.wait()
        return subprocess.CompletedProcess([], 0)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(subprocess, "run", run)
    RunLauncher(tmp_path, jobs=2, processes=2).launch({name: ["distill"] for name in ("a", "b", "c", "d")})
    assert (set(visible[:2]), set(visible), len(visible)) == (seen, seen, 4)


@pytest.mark.parametrize(
    ("jobs", "processes", "user_value", "expected"),
    [(2, 1, None, "4"), (2, 2, None, "2"), (5, 3, None, "1"), (1, 1, None, None), (2, 1, "6", "6")],
)
def test_concurrent_runs_split_the_cores_unless_the_user_sets_threads(
    jobs: int, processes: int, user_value: str | None, expected: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    threads: list[str | None] = []

    def run(_: list[str], *, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[bytes]:
        threads.append(env.get("OMP_NUM_THREADS"))
        return subprocess.CompletedProcess([], 0)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if user_value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", user_value)
    monkeypatch.setattr("ifkd.study.run_launcher.usable_cores", lambda: 8)
    monkeypatch.setattr(subprocess, "run", run)
    RunLauncher(tmp_path, jobs=jobs, processes=processes).launch({name: ["distill"] for name in ("a", "b")})
    assert threads == [expected, expected]


def test_finished_runs_are_not_started_and_failed_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "result.json").write_text("{}")
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command[-4:])
        return subprocess.CompletedProcess([], 2 if command[-1].endswith("bad") else 0)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed: bad\. See .*logs.bad\.txt for the reason"):
        RunLauncher(tmp_path).launch({name: ["distill", name] for name in ("done", "bad", "good")})
    assert commands == [["distill", name, "--out", str(tmp_path / name)] for name in ("bad", "good")]
