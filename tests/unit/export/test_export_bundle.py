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
from ifkd.core.errors import CheckpointError, ConfigError, DataError, OutputError, VerdictError
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
    assert set(manifest.checks) == {"model.onnx", "model.fp16.onnx", "model.yolo.onnx"}
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
        "data.license=CC-BY-4.0",
        "--no-interop",
    ]
    assert main(words) == 0
    bundle = open_bundle(tmp_path / "b")
    assert bundle.find("onnx") == ["model.onnx"]
    assert not (tmp_path / "b" / "model.yolo.onnx").exists()
    assert bundle.manifest.defaults.overlap_px == 16
    options = load(bundle.file("config.toml"), Recipe).export
    assert (options.overlap_px, options.interop) == (16, False)
    assert "| License of the training data | CC-BY-4.0 |" in bundle.file("README.md").read_text()
    out = capsys.readouterr().out
    assert "model.onnx" in out
    assert str(tmp_path / "b") in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("candidates_per_level=4000", "candidates_per_level: .*at most|less than or equal to 3840"),
        ("overlap_px=64", "export.overlap_px must be below data.tile_px; they are 64 and 64"),
        ("tile_sides_px=[96, 128]", r"must include data.tile_px; they are \[96, 128\] and 64"),
        ("overlap=3", "Did you mean 'overlap_px'"),
        ("max_batch=0", "max_batch"),
    ],
)
def test_invalid_options_are_refused(checkpoint_path: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_export(checkpoint_path, tmp_path / "b", overrides=[override])
    assert list(tmp_path.iterdir()) == []


def test_the_data_of_int8_can_move(checkpoint_path: Path, tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    for name, images in (("train", 3), ("val", 2)):
        path = write_data_set(tmp_path / "moved", name, images=images)
        path.write_text(path.read_text().replace("barge", "ship"))
    overrides = ["precisions=['int8']", "data.train=train.json", "data.validation=val.json"]
    with pytest.raises(DataError, match=r"There is no annotation file train\.json.*data\.root=DIR"):
        plan_export(checkpoint_path, tmp_path / "b", overrides=overrides)
    plan = plan_export(checkpoint_path, tmp_path / "b", overrides=[*overrides, f"data.root={tmp_path / 'moved'}"])
    assert plan.calibration is not None
    assert plan.calibration.record.source == "3 of 3 training images of train.json"
    assert plan.recipe.data.root == tmp_path / "moved"
    with pytest.raises(ConfigError, match=r"cannot change: got data\.scale"):
        plan_export(checkpoint_path, tmp_path / "b", overrides=["data.scale=2"])


def test_a_precision_that_is_named_twice_is_exported_once(checkpoint_path: Path, tmp_path: Path) -> None:
    plan = plan_export(checkpoint_path, tmp_path / "b", overrides=["precisions=['fp16', 'fp32', 'fp16']"])
    assert plan.precisions == ("fp32", "fp16")


def test_a_folder_that_is_not_writable_is_found_before_the_images_are_read(
    checkpoint_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        plan_export(checkpoint_path, tmp_path / "file" / "b", overrides=["precisions=['int8']"])


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
    words = ["export", str(checkpoint_path), "--no-interop", "--out", str(tmp_path / "b")]
    assert main(words) == VerdictError.exit_code == 1
    message = capsys.readouterr().err
    assert re.search(r"model\.fp16\.onnx: .* candidates matched.*--accept-drift", message, re.DOTALL)
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--accept-drift"]) == 0
    checks = open_bundle(tmp_path / "b").manifest.checks
    assert not checks["model.fp16.onnx"].passed
    assert checks["model.fp16.onnx"].max_score_difference > 0
