"""From a checkpoint to a bundle: what is written, what is refused, and what a failed parity does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli.main import main
from export.bundle.bundle import open_bundle
from export.export_bundle import export_checkpoint
from export.onnx.tensor_parity import TOLERANCES, Tolerance
from export.tiles import sample_tiles
from ifkd.core.config import load, parse
from ifkd.core.errors import CheckpointError, ConfigError, VerdictError
from ifkd.core.files import sha256_of
from ifkd.imagery.contrast import PADDING_RGB
from ifkd.recipe import DataOptions, Recipe

IMPOSSIBLE: dict[str, Tolerance] = {
    name: Tolerance(score=1e-12, box_px=1e-12, matched=1.0, cut_margin=0.05) for name in TOLERANCES
}


def data_of(root: Path, **values: Any) -> DataOptions:
    return parse(
        {"root": str(root), "train": "train.json", "test": "val.json", "tile_px": 64} | values, DataOptions, source=""
    )


def test_the_manifest_says_what_the_recipe_and_the_checkpoint_say(whole_bundle: Path, checkpoint_path: Path) -> None:
    bundle = open_bundle(whole_bundle)
    manifest = bundle.manifest
    assert (manifest.name, manifest.classes, manifest.category_ids) == ("tiny", ("ship", "tug", "ferry"), (1, 4, 9))
    assert (manifest.input.tile_px, manifest.input.max_batch, manifest.outputs.candidates) == ((64, 64), 4, 354)
    assert manifest.provenance["role"] == "student"
    assert manifest.provenance["checkpoint_sha256"] == sha256_of(checkpoint_path)
    assert manifest.provenance["parity_tiles"].startswith("8 tiles of seeded noise, as the validation images cannot")
    assert (whole_bundle / "model.safetensors").read_bytes() == checkpoint_path.read_bytes()
    assert load(bundle.file("config.toml"), Recipe).export.candidates_per_level == 100
    assert set(manifest.checks) == {"model.onnx", "model.fp16.onnx"}
    assert all(check.passed for check in manifest.checks.values())
    recorded = json.loads(bundle.file("checks/tensor_parity.json").read_text())
    assert recorded["checks"]["model.onnx"]["tolerance"]["box_px"] == 0.05


def test_settings_of_the_export_can_be_overridden_and_are_recorded(
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
def test_wrong_settings_are_refused_before_anything_is_written(
    checkpoint_path: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(checkpoint_path, tmp_path / "b", overrides=[override])
    assert list(tmp_path.iterdir()) == []


def test_an_absent_checkpoint_ends_in_2(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        export_checkpoint(tmp_path / "none.safetensors", tmp_path / "b")
    assert main(["export", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "b")]) == 2


def test_failed_parity_writes_nothing_and_ends_in_1(
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
    told = capsys.readouterr().err
    assert re.search(r"model\.fp16\.onnx: .* candidates matched.*--accept-drift", told)
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--accept-drift"]) == 0
    checks = open_bundle(tmp_path / "b").manifest.checks
    assert not checks["model.fp16.onnx"].passed
    assert checks["model.fp16.onnx"].max_score_difference > 0


def test_sample_tiles_are_the_validation_images_around_an_object(
    tmp_path: Path, write_data_set: Callable[..., Path]
) -> None:
    write_data_set(tmp_path, "val", images=3, size=(96, 160))
    sample = sample_tiles(data_of(tmp_path, validation="val.json"))
    assert sample.source == "3 tiles of the validation split"
    assert (sample.tiles.shape, sample.tiles.dtype) == ((3, 3, 64, 64), np.uint8)
    # Every tile shows the saturated colors of an object, not the gray of the ground alone.
    assert all(np.ptp(tile.astype(int), axis=0).max() > 150 for tile in sample.tiles)


def test_small_images_are_padded_and_scaled_as_in_training(tmp_path: Path, write_data_set: Callable[..., Path]) -> None:
    write_data_set(tmp_path, "val", images=1, size=(64, 64))
    sample = sample_tiles(data_of(tmp_path, validation="val.json", scale=0.5))
    assert sample.tiles[0, :, 63, 63].tolist() == list(PADDING_RGB)
    assert (sample.tiles[0, :, 32:, :] == np.array(PADDING_RGB)[:, None, None]).all()
    assert not (sample.tiles[0, :, :32, :32] == np.array(PADDING_RGB)[:, None, None]).all()


def test_noise_stands_in_for_absent_images_and_is_always_the_same(tmp_path: Path) -> None:
    first, second = (sample_tiles(data_of(tmp_path, validation="val.json"), count=2) for _ in range(2))
    assert first.source.startswith("2 tiles of seeded noise")
    np.testing.assert_array_equal(first.tiles, second.tiles)
    assert first.tiles[0].std() > 10
    assert (first.tiles[0] != first.tiles[1]).any()
