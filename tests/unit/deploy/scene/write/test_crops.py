"""Crops are windows of the scene, at the same place, and survive an interruption."""

import json
import shutil
import warnings

import fsspec
import numpy as np
import pytest
import rasterio
from fakes.fake_scene import CountingEngine, FailingEngine, FakeEngineError, sea, write_bundle, write_tif
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import GCPTransformer

from deploy.cli.main import main
from deploy.scene.write.crops import crop_windows
from ifkd.core.tiling import Window

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 90, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
PIXELS = sea(170, 200, OBJECTS) + np.arange(200, dtype=np.uint8)[:, None] % 20  # every column differs


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    bundle = write_bundle(tmp_path / "bundle").path

    def run(scene, *options, out=None, engine=None):
        monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine or CountingEngine())
        code = main(["detect", str(bundle), str(scene), "--out", str(out or tmp_path / "out"), *map(str, options)])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def scene(tmp_path):
    return write_tif(tmp_path / "harbor.tif", PIXELS)


def features(out):
    return [one["properties"] for one in json.loads((out / "detections.geojson").read_text())["features"]]


def crops(out):
    return {path.name: path.read_bytes() for path in (out / "crops").iterdir()}


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # in rasterio
def test_crops_are_windows_of_the_scene_by_rasterio(call, scene, tmp_path):
    assert call(scene, "--crops", 3)[0] == 0
    out = tmp_path / "out"
    found = features(out)
    assert [one["crop"] for one in found] == [*(f"crops/harbor_0000{n}.tif" for n in range(3)), None]
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert crops(out).keys() == {f"harbor_0000{n}.tif" for n in range(3)}
    assert json.loads((out / "run.json").read_text())["files"][-1] == "crops"
    boxes = json.loads((out / "detections.coco.json").read_text())
    with rasterio.open(scene) as whole:
        for one, coco in zip(found[:3], boxes[:3], strict=True):
            with rasterio.open(out / one["crop"]) as crop:
                window = whole.window(*crop.bounds).round_offsets().round_lengths()
                assert crop.crs == whole.crs
                assert crop.transform == whole.window_transform(window)
                np.testing.assert_array_equal(crop.read(), whole.read(window=window))
                x, y, width, height = coco["bbox"]
                margin = max(16, max(width, height) / 2)
                inside = x - margin, y - margin, x + width + margin, y + height + margin
                expected = np.clip(inside, 0, [200, 170, 200, 170])
                got = window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height
                assert np.abs(np.subtract(got, expected)).max() < 1
    table = (out / "detections.csv").read_text().splitlines()
    assert table[0].split(",").count("crop") == 1
    assert "crops/harbor_00002.tif" in table[3]


def test_without_a_georeference_crops_are_png(call, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "day.one.png")
    assert call(tmp_path / "day.one.png", "--crops", 9)[0] == 0
    assert crops(tmp_path / "out").keys() == {f"day.one_0000{n}.png" for n in range(4)}
    boxes = json.loads((tmp_path / "out" / "detections.coco.json").read_text())
    with Image.open(tmp_path / "out" / "crops" / "day.one_00000.png") as picture:
        x, y, w, h = boxes[0]["bbox"]
        (place,) = crop_windows(np.array([[x, y, x + w, y + h]]), (170, 200))
        np.testing.assert_array_equal(picture, PIXELS[place.top : place.bottom, place.left : place.right])


def test_crops_have_the_control_points_of_the_scene(call, scene, tmp_path):
    points = [
        GroundControlPoint(row=r, col=c, x=10 + c / 1000 + r * c / 1e7, y=50 - r / 1000)
        for r in (0, 85, 170)
        for c in (0, 100, 200)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        write_tif(scene, PIXELS, crs=None)
        with rasterio.open(scene, "r+") as dataset:
            dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        assert call(scene, "--crops", 1)[0] == 0
        with rasterio.open(tmp_path / "out" / "crops" / "harbor_00000.tif") as crop:
            (moved, crs), pixels = crop.gcps, crop.read().transpose(1, 2, 0)
    assert crs.to_epsg() == 4326
    x, y, w, h = json.loads((tmp_path / "out" / "detections.coco.json").read_text())[0]["bbox"]
    (window,) = crop_windows(np.array([[x, y, x + w, y + h]]), (170, 200))
    np.testing.assert_array_equal(pixels, PIXELS[window.top : window.bottom, window.left : window.right])
    with GCPTransformer(points, tps=True) as whole, GCPTransformer(moved, tps=True) as part:
        np.testing.assert_allclose(part.xy(3, 5), whole.xy(window.top + 3, window.left + 5), atol=1e-9)


def test_windows_stay_inside_the_scene():
    boxes = np.array([[0, 0, 4, 4], [96.5, 40.2, 100, 50], [0, 0, 100, 50]], np.float32)
    assert crop_windows(boxes, (50, 100)) == [Window(0, 0, 20, 20), Window(24, 80, 26, 20), Window(0, 0, 50, 100)]
    assert crop_windows(boxes[:0], (50, 100)) == []


def test_an_interrupted_run_has_the_same_crops_and_the_next_run_replaces_them(call, scene, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    call(scene, "--crops", 3, out=whole)
    with pytest.raises(FakeEngineError):
        call(scene, "--crops", 3, engine=FailingEngine(2))
    assert not (out / "crops").exists()
    assert call(scene, "--crops", 3)[0] == 0
    assert crops(out) == crops(whole)
    assert call(scene, "--crops", 1)[0] == 0
    assert crops(out).keys() == {"harbor_00000.tif"}

    def stop(*_, **__):
        raise FakeEngineError

    with monkeypatch.context() as patch:
        patch.setattr("deploy.scene.scene_run.write_json", stop)
        with pytest.raises(FakeEngineError):
            call(scene, "--crops", 3)
    assert crops(out).keys() == {"harbor_00000.tif"}  # nothing changes until all files are written
    assert call(scene)[0] == 0
    assert not (out / "crops").exists()
    assert "crop" not in features(out)[0]


def test_a_folder_of_crops_of_another_program_is_kept(call, scene, tmp_path):
    out = tmp_path / "out"
    for own_run in (False, True):
        shutil.rmtree(out, ignore_errors=True)
        if own_run:
            assert call(scene)[0] == 0
        (out / "crops").mkdir(parents=True)
        (out / "crops" / "wheat.txt").touch()
        code, said = call(scene, "--crops", 1)
        assert code == 2
        assert said.startswith(f"error: {out} has crops, not written by ifkd detect.\nhint: Choose another folder")
        assert crops(out) == {"wheat.txt": b""}


def test_objects_in_unreadable_parts_have_no_crop(call, tmp_path):
    path = write_tif(tmp_path / "cut.tif", sea(300, 100, [(20, 75, 44, 105, 0), (20, 5, 30, 15, 0)]), blockysize=10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 190 * 300])  # the rows from 110 on are missing
    assert call(path, "--crops", 5)[0] == 1
    assert [one["crop"] for one in features(tmp_path / "out")] == [None, "crops/cut_00001.tif"]


def test_crops_go_to_a_store(call, scene, tmp_path):
    memory = fsspec.filesystem("memory")
    for count in (3, 1):
        assert call(scene, "--crops", count, "--work-dir", tmp_path / "work", out="memory://crops-of/harbor")[0] == 0
        stored = [name.rpartition("/")[2] for name in memory.ls("/crops-of/harbor/crops", detail=False)]
        assert sorted(stored) == [f"harbor_0000{n}.tif" for n in range(count)]
    memory.rm("/crops-of", recursive=True)


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_that_is_none_is_refused(call, scene, count):
    code, said = call(scene, f"--crops={count}")
    assert code == 2
    assert "must be an integer of at least 1" in said
