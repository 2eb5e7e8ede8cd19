"""`ifkd verify`: exit codes, output, and results of `ifkd parity` about these files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.fake_bundle import run_command

from deploy.cli.main import main
from export.bundle.bundle import Bundle, open_bundle

PROGRAM = """
import sys
for name in ("torch", "onnx", "onnxruntime", "tensorrt", "rasterio"):
    sys.modules[name] = None
from deploy.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_receiving_machine_needs_no_runtime(whole_bundle: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "verify", str(whole_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.startswith("tiny: ")
    assert head.endswith(" MB, all as in the manifest")
    assert [line.split(":")[0] for line in lines] == ["model.fp16.onnx", "model.onnx", "model.yolo.onnx", "Verified"]


def test_differences_end_in_1_and_are_all_listed(bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle_copy.path / "config.toml").unlink()
    (bundle_copy.path / "extra").touch()
    code, out, err = run_command(capsys, "verify", str(bundle_copy.path), "--json")
    assert code == 1
    first, *differences = err.splitlines()
    assert first == f"error: {bundle_copy.path} has 2 differences from its records:"
    assert [line.strip() for line in differences] == json.loads(out)["differences"]


def test_a_folder_that_is_no_bundle_ends_in_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "verify", str(tmp_path))
    assert code == 2
    assert "is not a bundle: it has no model.json" in err


@pytest.fixture
def parity(fake_bundle, data, whole_bundle, capsys, tmp_path):
    """The content of `parity.json`, made with fake engines, with the digests of the files of `whole_bundle`."""
    del fake_bundle
    assert main(["parity", "bundle", "--data", data]) == 0
    capsys.readouterr()
    content = json.loads((tmp_path / "parity.json").read_text())
    files = open_bundle(whole_bundle).manifest.files
    for engine in (content["reference"], *(cell["engine"] for cell in content["cells"])):
        engine["sha256"] = files[engine["file"]].sha256
    return content


def test_a_parity_of_these_files_is_evidence(parity, whole_bundle, capsys, tmp_path):
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    code, out, _ = run_command(capsys, "verify", str(whole_bundle), "--parity", "parity.json")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("parity.json: "))
    assert re.match(r".*: parity on \d+ images with \d+ objects passed: onnxruntime fp32, onnxruntime fp16 agree", line)


def test_a_parity_of_other_files_or_that_failed_is_a_difference(parity, whole_bundle, capsys, tmp_path):
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    parity["cells"][0]["engine"]["sha256"] = "5" * 64
    parity["reference"]["file"] = "old.safetensors"
    parity.update(passed=False, verdict="failed: too different")
    (tmp_path / "other.json").write_text(json.dumps(parity))
    words = ["verify", str(whole_bundle), "--parity", "parity.json", "other.json", "--json"]
    code, out, _ = run_command(capsys, *words)
    assert code == 1
    renamed, changed, failed = json.loads(out)["differences"]
    assert renamed.startswith("other.json: old.safetensors of another bundle was compared: got sha256 ")
    assert renamed.endswith("expected no such file.")
    assert changed.startswith(
        f"other.json: model.onnx of another bundle was compared: got sha256 {'5' * 64}, expected "
    )
    assert failed == "other.json: The parity did not pass: failed: too different."
