"""`ifkd study`: invalid options are refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

ExpectError = Callable[..., str]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "argument --seeds: must be an integer of at least 1, got 0"),
        (["--set", 'distillation.method={name="frs"}'], "must be IFKD, because its options apply to the IFKD variants"),
        (["--methods", "frss"], "hint: Did you mean 'frs'?"),
    ],
)
def test_invalid_options_are_refused(
    expect_error: ExpectError, recipe_path: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in expect_error("study", "compare", str(recipe_path), "--out", str(tmp_path / "study"), *options)
    assert not (tmp_path / "study").exists()


def test_an_unknown_parameter_of_a_sweep_is_refused(capsys: pytest.CaptureFixture[str], recipe_path: Path) -> None:
    from deploy.cli.main import main

    assert main(["study", "sweep", str(recipe_path), "--parameter", "gamma"]) == 2
    assert "invalid choice: 'gamma'" in capsys.readouterr().err
