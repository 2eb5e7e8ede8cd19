"""`ifkd engine`: options that only one builder has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli.main import main
from export.bundle.bundle import Bundle


@pytest.mark.parametrize(("option", "value"), [("--compatibility", "ampere_plus"), ("--timing-cache", "cache")])
def test_options_that_the_builder_would_ignore_are_refused(
    option: str, value: str, whole_bundle: Path, expect_error: Callable[..., str]
) -> None:
    words = ["engine", str(whole_bundle), "--precision", "fp16", option, value]
    assert f"{option} needs --builder tensorrt: got tensorrt-rtx" in expect_error(*words)


def test_commands_of_trtexec_have_these_options_without_a_builder(
    bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--print-commands", "--precision", "fp16", "--compatibility", "ampere_plus", "--timing-cache", "cache"]
    assert main(["engine", str(bundle_copy.path), *words]) == 0
    assert "--hardwareCompatibilityLevel=ampere+ --timingCacheFile=cache" in capsys.readouterr().out
