"""Export of a screen: the files of the bundle, their parity, free sizes, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deploy.cli.main import main
from export.bundle.bundle import MANIFEST_NAME, Bundle, add_file, open_bundle
from export.bundle.screen_record import ScreenRecord
from export.bundle.verification import verify_bundle
from export.export_bundle import export_bundle
from export.export_plan import plan_export
from export.screen.screen_export import ExportableScreen, export_screen, plan_screen
from ifkd.core.errors import CheckpointError, DataError, VerdictError
from ifkd.models.checkpoint import load_checkpoint, save_checkpoint
from ifkd.recipe import DataOptions, ScreenOptions
from ifkd.screen.checkpoint import ScreenMeta, load_screen
from ifkd.screen.network import Screen


def write_screen_checkpoint(path: Path, detector: Path, data: DataOptions | None = None) -> Path:
    recipe = load_checkpoint(detector).meta.recipe
    options = ScreenOptions(channels=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        screen = Screen(options)
    meta = ScreenMeta(recipe=recipe.model_copy(update={"data": data or recipe.data}), provenance={}, screen=options)
    save_checkpoint(path, screen, meta)
    return path


@pytest.fixture(scope="module")
def screened(
    checkpoint_path: Path, whole_bundle: Path, make_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """A bundle with a screen, and the checkpoint of the screen; read-only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        checkpoint = write_screen_checkpoint(folder / "screen.safetensors", checkpoint_path)
        with pytest.MonkeyPatch.context() as patch:
            reused = whole_bundle / "model.onnx"
            patch.setattr("export.export_bundle.export_onnx", lambda _, path, **__: shutil.copyfile(reused, path))
            plan = plan_export(checkpoint_path, folder / "bundle", screen=checkpoint, overrides=["interop=false"])
            export_bundle(plan)

    return make_once("screened", make)


@pytest.fixture
def reusing_files(screened: Path, without_exporting: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse the exported FP32 files, which saves seconds."""
    without_exporting()
    reused = screened / "bundle" / "screen.onnx"
    monkeypatch.setattr("export.screen.screen_export.write_onnx", lambda _, path: shutil.copyfile(reused, path))


def test_the_bundle_has_a_verified_screen(screened: Path) -> None:
    bundle = open_bundle(screened / "bundle")
    screen = bundle.manifest.screen
    assert screen is not None
    assert bundle.find("screen-onnx") == ["screen.fp16.onnx", "screen.onnx"]
    assert (screen.scale, screen.stride, screen.cell_px, screen.threshold) == (0.25, 8, 32.0, None)
    assert screen.margin_px == max(bundle.manifest.defaults.overlap_px, screen.cell_px) / 2
    assert screen.calibration is None  # the checkpoint's images do not exist
    assert all(check.passed for check in screen.checks.values())
    found = verify_bundle(bundle.path)
    assert found.differences == ()
    assert found.evidence["screen.fp16.onnx"].startswith("tensor parity with torch passed, ")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 24), (1, 256, 1000), (2, 24, 24)])
def test_every_size_and_batch_has_torchs_objectness(screened: Path, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    tiles = np.random.default_rng(0).integers(0, 256, (batch, 3, height, width), np.uint8)
    with torch.inference_mode():
        expected = ExportableScreen(load_screen(screened / "screen.safetensors")[0])(torch.from_numpy(tiles)).numpy()
    assert expected.shape == (batch, 1, height // 8, width // 8)
    for name, tolerance in (("screen.onnx", 1e-5), ("screen.fp16.onnx", 1e-2)):
        network = onnxruntime.InferenceSession(screened / "bundle" / name, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(network.run(["objectness"], {"tiles": tiles})[0], expected, atol=tolerance)


def test_a_screen_of_other_pixels_is_refused(checkpoint_path: Path, tmp_path: Path) -> None:
    data = load_checkpoint(checkpoint_path).meta.recipe.data.model_copy(update={"scale": 0.5})
    screen = write_screen_checkpoint(tmp_path / "screen.safetensors", checkpoint_path, data)
    with pytest.raises(CheckpointError, match=r"another data\.scale than the detector: got 0\.5, expected 1\.0"):
        plan_export(checkpoint_path, tmp_path / "bundle", screen=screen)


def test_the_limits_of_the_command_line_apply(checkpoint_path: Path, screened: Path, tmp_path: Path) -> None:
    overrides = ["screen.max_lost_fraction=0.02", "screen.confidence=0.8", "max_batch=2"]
    checkpoint = screened / "screen.safetensors"
    plan = plan_export(checkpoint_path, tmp_path / "bundle", screen=checkpoint, overrides=overrides)
    assert plan.screen is not None
    assert (plan.screen.options.max_lost_fraction, plan.screen.options.confidence) == (0.02, 0.8)
    assert (plan.screen.options.channels, plan.recipe.export.max_batch) == (16, 2)


def test_a_screen_that_differs_from_torch_is_refused(
    checkpoint_path: Path,
    screened: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reusing_files: None,
) -> None:
    monkeypatch.setattr("export.screen.screen_export.TOLERANCES", {"fp32": -1.0, "fp16": 1.0})
    screen, overrides = screened / "screen.safetensors", ["interop=false", "precisions=['fp32']"]
    plan = plan_export(checkpoint_path, tmp_path / "bundle", screen=screen, overrides=overrides)
    with pytest.raises(VerdictError, match=r"The screen differs from torch.*screen\.onnx"):
        export_bundle(plan)
    assert not (tmp_path / "bundle").exists()


def test_the_command_exports_a_screen(
    checkpoint_path: Path,
    screened: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reusing_files: None,
) -> None:
    screen, out = str(screened / "screen.safetensors"), str(tmp_path / "bundle")
    options = ["precisions=['fp32']", "--no-interop", "--screen", screen]
    assert main(["export", str(checkpoint_path), *options, "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "screen.onnx: parity with torch passed: " in shown
    assert "The screen has no threshold, because the validation images cannot be read." in shown


def test_int8_files_keep_no_more_layers_in_float_than_their_tolerance_needs(
    checkpoint_path: Path, screened: Path, tmp_path: Path, reusing_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_screen(screened / "screen.safetensors", load_checkpoint(checkpoint_path).meta.recipe)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 3, 256, 256), np.uint8)

    def export(folder: Path) -> ScreenRecord:
        folder.mkdir()
        return export_screen(
            plan,
            folder,
            recipe=load_checkpoint(checkpoint_path).meta.recipe,
            precisions=("fp32", "int8", "int8-cpu"),
            tiles=tiles,
            validation=DataError("none"),
            detections=DataError("none"),
            score_threshold=0.5,
            accept_drift=False,
        )

    names = {"screen.onnx", "screen.int8.onnx", "screen.int8-cpu.onnx"}
    record = export(tmp_path / "whole")
    assert set(record.checks) == names == {path.name for path in (tmp_path / "whole").iterdir()}
    assert {check.float_layers for check in record.checks.values()} == {0}
    limit = max(check.max_difference for check in record.checks.values()) * 0.9
    monkeypatch.setattr("export.screen.screen_export.TOLERANCES", {"fp32": 1e-4, "int8": limit, "int8-cpu": limit})
    strict = export(tmp_path / "strict")
    assert all(
        check.passed and check.max_difference <= limit for name, check in strict.checks.items() if "int8" in name
    )
    kept = {name: check.float_layers for name, check in strict.checks.items()}
    assert 0 < max(kept.values()) < 8
    worst = max(kept, key=lambda name: kept[name])
    assert f"{kept[worst]} layers in float" in strict.checks[worst].in_words


def test_a_screen_is_added_to_a_bundle_whose_other_files_stay_as_they_are(
    bundle_copy: Bundle, screened: Path, capsys: pytest.CaptureFixture[str], reusing_files: None
) -> None:
    before = {path: path.read_bytes() for path in bundle_copy.path.rglob("*") if path.is_file()}
    words = ["export", str(bundle_copy.path), "--screen", str(screened / "screen.safetensors")]
    assert main(words) == 0
    assert "screen.onnx: parity with torch passed: " in capsys.readouterr().out
    assert verify_bundle(bundle_copy.path).differences == ()
    bundle = open_bundle(bundle_copy.path)
    assert bundle.manifest.screen is not None
    precisions = {str(bundle.manifest.files[name].precision) for name in bundle.find("onnx")}
    assert {str(bundle.manifest.files[name].precision) for name in bundle.find("screen-onnx")} == precisions
    described = {bundle.path / name for name in (MANIFEST_NAME, "README.md", "model.stac.json")}
    assert all(path.read_bytes() == content for path, content in before.items() if path not in described)
    manifest = bundle.manifest.model_copy(update={"screen": None, "files": bundle_copy.manifest.files})
    assert manifest == bundle_copy.manifest


def test_a_screen_replaces_that_of_a_bundle_with_its_engines(
    bundle_copy: Bundle, screened: Path, tmp_path: Path, reusing_files: None
) -> None:
    words = ["export", str(bundle_copy.path), "--screen", str(screened / "screen.safetensors"), "--json"]
    assert main(words) == 0
    engine = bundle_copy.path / "engines" / "screen-portable.engine"
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(b"engine")
    add_file(open_bundle(bundle_copy.path), "engines/screen-portable.engine", kind="screen-engine", precision="fp32")
    assert main(words) == 0
    assert open_bundle(bundle_copy.path).find("screen-engine") == []
    assert not engine.exists()
    assert verify_bundle(bundle_copy.path).differences == ()


def test_a_screen_that_differs_leaves_the_bundle_as_it_is(
    bundle_copy: Bundle, screened: Path, monkeypatch: pytest.MonkeyPatch, reusing_files: None
) -> None:
    monkeypatch.setattr("export.screen.screen_export.TOLERANCES", {"fp32": -1.0, "fp16": 1.0})
    before = (bundle_copy.path / MANIFEST_NAME).read_bytes()
    assert main(["export", str(bundle_copy.path), "--screen", str(screened / "screen.safetensors")]) == 1
    assert (bundle_copy.path / MANIFEST_NAME).read_bytes() == before
    assert not (bundle_copy.path / "screen.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("max_batch=2",), "A bundle keeps its options when a screen is added: got max_batch=2, expected data.KEY, "),
        (("--out", "other"), "is exported already: got --out"),
        (("--interop",), "is exported already: got --interop"),
    ],
)
def test_options_of_the_detector_are_refused_when_a_screen_is_added(
    bundle_copy: Bundle, screened: Path, expect_error: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    screen = str(screened / "screen.safetensors")
    assert message in expect_error("export", str(bundle_copy.path), "--screen", screen, *words)
