"""Export of a checkpoint to a bundle: content, invalid options and failed parity."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.cli.main import main
from export.bundle.bundle import open_bundle
from export.export_plan import plan_export
from export.onnx.tensor_parity import TOLERANCES, TensorTolerance
from ifkd.core.config import load
from ifkd.core.errors import CheckpointError, ConfigError, VerdictError
from ifkd.core.files import sha256_of
from ifkd.recipe import Recipe

IMPOSSIBLE: dict[str, TensorTolerance] = {
    name: TensorTolerance(score=1e-12, box_px=1e-12, matched_fraction=1.0, cut_margin=0.05) for name in TOLERANCES
}


def test_the_manifest_contains_the_values_of_recipe_and_checkpoint(whole_bundle: Path, checkpoint_path: Path) -> None:
    bundle = open_bundle(whole_bundle)
    manifest = bundle.manifest
    assert (manifest.name, manifest.classes, manifest.category_ids) == ("tiny", ("ship", "tug", "ferry"), (1, 4, 9))
    assert (manifest.input.tile_px, manifest.input.max_batch, manifest.outputs.candidates) == ((64, 64), 4, 354)
    assert manifest.provenance["role"] == "student"
    assert manifest.provenance["checkpoint_sha256"] == sha256_of(checkpoint_path)
    assert manifest.provenance["parity_tiles"].startswith(
        "8 tiles of seeded noise, because the validation images cannot"
    )
    assert (whole_bundle / "model.safetensors").read_bytes() == checkpoint_path.read_bytes()
    assert load(bundle.file("config.toml"), Recipe).export.candidates_per_level == 100
    assert set(manifest.checks) == {"model.onnx", "model.fp16.onnx"}
    assert all(check.passed for check in manifest.checks.values())
    recorded = json.loads(bundle.file("checks/tensor_parity.json").read_text())
    assert recorded["checks"]["model.onnx"]["tolerance"]["box_px"] == 0.05


def test_export_options_can_be_overridden_and_are_recorded(
    checkpoint_path: Path, tmp_path: Path, without_exporting: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    without_exporting()
    words = [
        "export",
        str(checkpoint_path),
        "--out",
        str(tmp_path / "b"),
        "overlap_px=16",
        "export.precisions=['fp32']",
    ]
    assert main(words) == 0
    bundle = open_bundle(tmp_path / "b")
    assert bundle.find("onnx") == ["model.onnx"]
    assert bundle.manifest.defaults.overlap_px == 16
    assert load(bundle.file("config.toml"), Recipe).export.overlap_px == 16
    out = capsys.readouterr().out
    assert "model.onnx" in out
    assert str(tmp_path / "b") in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("candidates_per_level=4000", "1 to 3840"),
        ("overlap=3", "Did you mean 'overlap_px'"),
        ("max_batch=0", "max_batch"),
    ],
)
def test_invalid_options_are_refused(checkpoint_path: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_export(checkpoint_path, tmp_path / "b", overrides=[override])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_has_exit_code_2(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        plan_export(tmp_path / "none.safetensors", tmp_path / "b")
    assert main(["export", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "b")]) == 2


def test_failed_parity_writes_nothing_and_has_exit_code_1(
    checkpoint_path: Path,
    tmp_path: Path,
    without_exporting: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_exporting()
    monkeypatch.setattr("export.onnx.tensor_parity.TOLERANCES", IMPOSSIBLE)
    words = ["export", str(checkpoint_path), "--out", str(tmp_path / "b")]
    assert main(words) == VerdictError.exit_code == 1
    message = capsys.readouterr().err
    assert re.search(r"model\.fp16\.onnx: .* candidates matched.*--accept-drift", message, re.DOTALL)
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--accept-drift"]) == 0
    checks = open_bundle(tmp_path / "b").manifest.checks
    assert not checks["model.fp16.onnx"].passed
    assert checks["model.fp16.onnx"].max_score_difference > 0
