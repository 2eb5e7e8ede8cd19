"""The tests of TensorRT's engines and builds with the Python bindings of earlier releases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.tensorrt_stand_in import BINDINGS_VARIABLE, StandIn

TESTS = Path(__file__).parents[1]
FILES = ("unit/deploy/engines/test_tensorrt_engine.py", "unit/export/tensorrt/test_build.py")


@pytest.mark.slow
@pytest.mark.parametrize("release", ["10.1.0", "10.3.0", "10.9.0.34", "10.13.3.9", "10.16.1.11", "11.0.0.114"])
def test_the_bindings_of_earlier_releases_pass_the_same_tests(
    release: str, stand_in: StandIn, whole_bundle: Path, tmp_path: Path
) -> None:
    assert not stand_in.version.startswith(release)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    wheel = f"tensorrt-cu12-bindings=={release}"
    installed = subprocess.run(
        [*pip, "--target", tmp_path / "bindings", wheel], check=False, capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"{wheel} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    environment = {**os.environ, BINDINGS_VARIABLE: str(tmp_path / "bindings")}
    environment |= {"IFKD_SHARED_FIXTURES": str(whole_bundle.parent), "PYTEST_ADDOPTS": ""}
    slow = "both_precisions or command_builds or opt_batches"  # builds by TensorRT-RTX
    options = ["-rs", "-p", "no:cacheprovider", "--basetemp", tmp_path / "base", "-k", f"not ({slow})"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(TESTS / file for file in FILES)],
        cwd=TESTS.parent, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-5000:]
    assert "[100%]" in run.stdout
    assert "are not installed" not in run.stdout
