"""Fixtures of studies."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest
import tomli_w

from deploy.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: dict[str, Any]) -> Path:
    """A recipe of one epoch over tiny data; its method is IFKD without MobileSAM."""
    values = recipe_values
    values["distillation"]["method"] = {"name": "ifkd", "ede": {"enabled": False}}
    for part in (values["teacher"], values["student"], values["distillation"]):
        part["training"]["epochs"] = 1
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(values))
    return path


@pytest.fixture
def runs_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a study's runs in this process, which saves the imports of a process per run."""
    start_process = subprocess.run

    def run(command: list[str], *, stdout: TextIO, **options: Any) -> subprocess.CompletedProcess[str]:
        if command[:3] != [sys.executable, "-m", "ifkd"]:  # such as matplotlib's, which looks for fonts
            return start_process(command, stdout=stdout, **options)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            return subprocess.CompletedProcess(command, main(command[3:]))

    monkeypatch.setattr(subprocess, "run", run)
