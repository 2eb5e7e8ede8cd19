"""Scenes whose data type, range or bands are not those of the training images are reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif

from deploy.cli.main import main
from deploy.scene.settings import SceneRequest, settings_for
from export.bundle.bundle import Bundle, open_bundle
from ifkd.core.errors import DataError

UINT8 = {"images": 2, "dtypes": ["uint8"], "channels": [3], "low": 21.0, "high": 180.0}
UINT16 = {"images": 2, "dtypes": ["uint16"], "channels": [1, 3], "low": 300.0, "high": 2900.0}


def bundle_of(folder: Path, values: dict | None, imagery: dict | None = None) -> Bundle:
    write_bundle(folder)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["provenance"] = {} if values is None else {"image_values": values}
    manifest["input"]["imagery"] = imagery or {}
    (folder / "model.json").write_text(json.dumps(manifest))
    return open_bundle(folder)


def remarks_of(bundle: Bundle, pixels: np.ndarray, **options: object) -> tuple[str, ...]:
    request = SceneRequest(bundle, settings_for(bundle.manifest), **options)
    with request.open_scene(pixels) as scene:
        return scene.info.remarks


def picture(dtype: str, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 250, (60, 70, bands)).astype(dtype)


def test_sixteen_bits_for_a_bundle_of_eight_bits(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", UINT8)
    (remark,) = remarks_of(bundle, picture("uint16", 1)[..., [0, 0, 0]])
    assert "has pixels of type uint16, but training saw uint8 with values of 21 to 180" in remark
    assert "Its values 10" in remark
    assert "become black to white (percentiles 2-98)" in remark
    assert "--scale-range" in remark
    assert remarks_of(bundle, picture("uint8")) == ()
    assert remarks_of(bundle, picture("uint16"), scale_range=(0.0, 4000.0)) == ()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint32"])
@pytest.mark.parametrize("limits", [None, [0.0, 255.0]])
def test_other_types_for_a_bundle_of_sixteen_bits(tmp_path: Path, dtype: str, limits: list[float] | None) -> None:
    bundle = bundle_of(tmp_path / "bundle", UINT16, {"limits": limits})
    (remark,) = remarks_of(bundle, picture(dtype))
    assert f"has pixels of type {dtype}, but training saw uint16 with values of 300 to 2900" in remark
    assert remarks_of(bundle, picture("uint16")) == ()


@pytest.mark.parametrize(
    ("pixel_m", "stated", "remarks"),
    [(2.0, None, 0), (2.4, None, 0), (10.0, None, 1), (0.5, None, 1), (10.0, 10.0, 0)],
)
def test_pixels_of_another_size_than_the_training_images_have(
    tmp_path: Path, pixel_m: float, stated: float | None, remarks: int
) -> None:
    bundle = bundle_of(tmp_path / "bundle", UINT8)
    defaults = bundle.manifest.defaults.model_copy(update={"gsd_m": 2.0})
    bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"defaults": defaults}))
    transform = Affine(pixel_m, 0, 500_000, 0, -pixel_m, 4_500_000)
    write_tif(tmp_path / "s.tif", sea(96, 96, ()), transform=transform)
    request = SceneRequest(bundle, settings_for(bundle.manifest, gsd_m=stated))
    with request.open_scene(tmp_path / "s.tif") as scene:
        found = [one for one in scene.info.remarks if "--gsd-m" in one]
    assert len(found) == remarks
    assert all(f"measure {pixel_m:g} m, but it is processed as if they measured 2 m" in one for one in found)


def test_a_bundle_that_does_not_state_its_training_images(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", None)
    (remark,) = remarks_of(bundle, picture("uint16"))
    assert "does not state which type and range its training images had" in remark
    assert remarks_of(bundle, picture("uint8")) == ()
    assert remarks_of(bundle, picture("uint16"), scale_range=(0.0, 4000.0)) == ()
    assert remarks_of(bundle_of(tmp_path / "given", None, {"limits": [0.0, 900.0]}), picture("uint16")) == ()


def test_another_number_of_bands(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", UINT8)
    (remark,) = remarks_of(bundle, picture("uint8", 1))
    assert "is read as 1 band, but training saw images of 3. Choose bands with --bands" in remark
    assert remarks_of(bundle, picture("uint8", 5)) == ()
    gray = bundle_of(tmp_path / "gray", {**UINT8, "channels": [1]})
    (remark,) = remarks_of(gray, picture("uint8"))
    assert "is read as 3 bands, but training saw images of 1" in remark
    assert remarks_of(gray, picture("uint8"), bands=(2,)) == ()


def test_an_invalid_provenance_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", {**UINT8, "low": "dark"})
    with pytest.raises(DataError, match="invalid image_values"):
        remarks_of(bundle, picture("uint8"))


def test_the_command_prints_and_records_remarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_of(tmp_path / "bundle", UINT8)
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    scene = sea(80, 90, [(20, 20, 40, 30, 0)]).astype(np.int16)
    scene[:10] = -32768
    path = write_tif(tmp_path / "a.tif", scene)
    command = ["detect", str(tmp_path / "bundle"), str(path), "--out", str(tmp_path / "out")]
    command += ["--backend", "onnxruntime", "--precision", "fp32"]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "training saw uint8" in said
    assert "are -32768, which is not declared as nodata" in said
    record = json.loads((tmp_path / "out" / "run.json").read_text())["scene"]
    assert all(f"ifkd: {remark}" in said for remark in record["remarks"])
    assert len(record["remarks"]) == 2
    assert record["contrast_stretch"]["left_out"] == [{"value": -32768.0, "fraction": 0.125}]
    assert main([*command, "--nodata=-32768", "--scale-range", "0", "255", "--no-resume"]) == 0
    assert "ifkd:" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["none", "4", "0", "x", "-1"])
def test_the_option_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    bundle_of(tmp_path / "bundle", UINT8)
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    pixels = np.dstack([sea(80, 90, [(20, 20, 40, 30, 0)]), np.full((80, 90), 255, np.uint8)])
    pixels[:, :45, 3] = 0
    path = write_tif(tmp_path / "a.tif", pixels)
    code = main(["detect", str(tmp_path / "bundle"), str(path), "--out", str(tmp_path / "out"), "--alpha", value])
    if value in {"none", "4"}:
        assert code == 0
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert record["scene"]["alpha"] == (4 if value == "4" else None)
        assert record["objects"] == (0 if value == "4" else 1)
    else:
        assert code == 2
        assert "neither a band number, from 1, nor `none`" in capsys.readouterr().err
