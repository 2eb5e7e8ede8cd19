"""Run the command line in an empty folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w


@pytest.fixture
def expect_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """The function that runs a command which must fail: (*argv, lines) -> its message.

    The exit code is 2. The message has `lines` lines, of which the first starts with "error: ", and at most one line
    "hint: …". No file is written except a run's config.toml.
    """
    from deploy.cli.main import main

    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*argv: str, lines: int = 1) -> str:
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        message = captured.err[captured.err.index("error: ") :]
        problem, _, hint = message.rstrip("\n").partition("\nhint: ")
        assert len(problem.splitlines()) == lines, message
        assert "\n" not in hint
        written = {path.name for path in folder.rglob("*") if path.is_file()}
        assert written <= {"config.toml"}, written
        return message

    return run


@pytest.fixture
def recipe_path(tmp_path: Path, recipe_values: dict[str, Any]) -> Path:
    """The file of a tiny recipe over `data_folder`."""
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(recipe_values))
    return path
