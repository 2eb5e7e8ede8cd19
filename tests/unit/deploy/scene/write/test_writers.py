"""Properties of detections are the same in all formats."""

import csv
import json
import re
import sqlite3
import sys

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
from affine import Affine
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif
from PIL import Image

from deploy.cli.main import main

LOCAL = 'LOCAL_CS["drawing",UNIT["metre",1]]'
OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0)]


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def call(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())

    def run(scene, *options, out="out"):
        code = main(["detect", str(bundle), str(scene), "--out", str(tmp_path / out), *map(str, options)])
        return code, *capsys.readouterr()

    return run


def properties(out):
    return [one["properties"] for one in json.loads((out / "detections.geojson").read_text())["features"]]


def table(out):
    return list(csv.DictReader((out / "detections.csv").read_text().splitlines()))


def test_every_format_has_the_time(call, tmp_path):
    scene = write_tif(tmp_path / "harbor.tif", sea(170, 200, OBJECTS))
    stac = {"type": "Feature", "stac_version": "1.1.0", "id": "x", "properties": {"datetime": "2026-01-01T00:00:00Z"}}
    (tmp_path / "harbor.json").write_text(json.dumps(stac))
    time, out = "2026-05-01T12:20:30.25+02:00", tmp_path / "out"
    assert call(scene, "--time", time)[0] == 0
    written = "2026-05-01T10:20:30.250Z"
    assert [one["time"] for one in properties(out)] == [written] * 3
    assert [row["time"] for row in table(out)] == [written] * 3
    assert (pyogrio.read_dataframe(out / "detections.gpkg", layer="detections").time == pd.Timestamp(time)).all()
    with sqlite3.connect(out / "detections.gpkg") as database:
        assert database.execute("select distinct time from detections").fetchall() == [(written,)]
    assert f'["Acquired","{written}"]' in (out / "map.html").read_text()
    record = json.loads((out / "run.json").read_text())["scene"]
    assert (record["time"], record["time_source"]) == (written, "the user")
    assert call(scene, out="stac")[0] == 0
    record = json.loads((tmp_path / "stac" / "run.json").read_text())["scene"]
    assert (record["time"], record["time_source"]) == ("2026-01-01T00:00:00Z", "datetime of harbor.json")


def test_an_unknown_time_is_null(call, tmp_path):
    assert call(write_tif(tmp_path / "harbor.tif", sea(170, 200, OBJECTS)))[0] == 0
    out = tmp_path / "out"
    assert [one["time"] for one in properties(out)] == [None] * 3
    assert [row["time"] for row in table(out)] == [""] * 3
    assert pyogrio.read_dataframe(out / "detections.gpkg", layer="detections").time.isna().all()
    record = json.loads((out / "run.json").read_text())["scene"]
    assert (record["time"], record["time_source"]) == (None, None)


def test_every_format_has_the_size_on_the_ground(call, tmp_path):
    degrees = Affine(1e-4, 0, 10, 0, -1e-4, 60)
    assert call(write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS), crs="EPSG:4326", transform=degrees))[0] == 0
    out = tmp_path / "out"
    frame = pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")
    ring = np.array([box.exterior.coords[:4] for box in frame.geometry])
    middles = (ring + np.roll(ring, -1, axis=1)) / 2  # in degrees, the middle of a side is that of its ends
    geod = pyproj.Geod(ellps="WGS84")
    sides = [geod.inv(*middles[:, i].T, *middles[:, i + 2].T)[2] for i in (0, 1)]
    expected = np.sort(sides, axis=0)[::-1]
    np.testing.assert_allclose(frame[["length_m", "width_m"]].T, expected, atol=0.005)
    for rows in (properties(out), table(out)):
        np.testing.assert_array_equal([float(row["length_m"]) for row in rows], frame.length_m)
        np.testing.assert_array_equal([float(row["width_m"]) for row in rows], frame.width_m)
    page = json.loads(re.search(r'"sizes_m":(\[\[.*?\]\])', (out / "map.html").read_text())[1])
    np.testing.assert_array_equal(page, frame[["length_m", "width_m"]])


def test_without_places_sizes_are_pixels_times_the_ground_sample_distance(call, tmp_path, bundle):
    scene = tmp_path / "s.png"
    Image.fromarray(sea(170, 200, OBJECTS)).save(scene)
    assert call(scene)[0] == 0
    assert [(row["length_m"], row["width_m"]) for row in table(tmp_path / "out")] == [("", "")] * 3
    write_bundle(bundle, gsd_m=0.5)
    assert call(scene, out="as_trained")[0] == 0
    expected = {(10.0, 6.0), (9.0, 6.0), (6.0, 5.0)}
    assert {(float(row["length_m"]), float(row["width_m"])) for row in table(tmp_path / "as_trained")} == expected
    assert call(scene, "--gsd-m", 1, "--score-threshold", 0.5, out="stated")[0] == 0
    for row in table(tmp_path / "stated"):
        x1, y1, x2, y2 = (float(row[f"{name}_px"]) for name in ("x1", "y1", "x2", "y2"))
        sides = float(row["length_m"]), float(row["width_m"])
        assert sides == pytest.approx((max(x2 - x1, y2 - y1), min(x2 - x1, y2 - y1)), abs=0.006)


@pytest.mark.parametrize("system", ["EPSG:32633", "EPSG:4326", LOCAL])
def test_geoparquet_is_the_geopackage(call, tmp_path, system):
    degrees = Affine(1e-4, 0, 10, 0, -1e-4, 60) if system == "EPSG:4326" else None
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS), crs=system, transform=degrees)
    options = ("--crops", 2, "--time", "2026-05-01T10:20:30.25Z", "--format", "parquet", "gpkg")
    assert call(scene, *options)[0] == 0
    frame = geopandas.read_parquet(tmp_path / "out" / "detections.parquet")
    expected = geopandas.read_file(tmp_path / "out" / "detections.gpkg", layer="detections")
    assert len(frame) == 3
    assert frame.crs == expected.crs or system == LOCAL
    assert frame.crs.name == expected.crs.name
    assert frame.geometry.geom_equals(expected.geometry).all()
    assert frame.crop.tolist()[:2] == ["crops/s_00000.tif", "crops/s_00001.tif"]
    names = [name for name in frame.columns if name != "geometry"]
    pd.testing.assert_frame_equal(pd.DataFrame(frame[names]), pd.DataFrame(expected[names]))
    content = (tmp_path / "out" / "detections.parquet").read_bytes()
    assert call(scene, *options)[0] == 0
    assert (tmp_path / "out" / "detections.parquet").read_bytes() == content
    assert call(scene)[0] == 0
    assert not (tmp_path / "out" / "detections.parquet").exists()


def test_geoparquet_has_the_tags_of_filters(call, tmp_path):
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS))
    assert call(scene, "--format", "geojson", out="all")[0] == 0
    first = geopandas.read_file(tmp_path / "all" / "detections.geojson")[:1]
    first.to_file(tmp_path / "area.geojson")
    first.set_geometry(first.representative_point()).assign(name="rig").to_file(tmp_path / "points.geojson")
    filters = ("--exclude", tmp_path / "area.geojson", "--tag", "--near", tmp_path / "points.geojson", "--within", 50)
    assert call(scene, *filters, "--format", "parquet")[0] == 0
    frame = geopandas.read_parquet(tmp_path / "out" / "detections.parquet")
    assert frame.excluded.tolist() == [True, False, False]
    assert frame.near_m.isna().tolist() == [False, True, True]
    assert frame.near.isna().tolist() == [False, True, True]


def test_a_scene_without_objects_is_a_geoparquet_file(call, tmp_path):
    assert call(write_tif(tmp_path / "s.tif", sea(90, 90, [])), "--format", "parquet")[0] == 0
    frame = geopandas.read_parquet(tmp_path / "out" / "detections.parquet")
    assert (len(frame), frame.crs.to_epsg(), frame.score.dtype) == (0, 32633, np.float64)


def test_geoparquet_needs_places_and_pyarrow(call, tmp_path, monkeypatch):
    Image.fromarray(sea(60, 60, [])).save(tmp_path / "s.png")
    code, _, said = call(tmp_path / "s.png", "--format", "parquet")
    assert code == 2
    assert "s.png cannot be written as parquet: s.png has no coordinate system" in said
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, said = call(tmp_path / "s.png", "--format", "parquet")
    assert code == 2
    assert said.startswith("error: The format parquet needs the package pyarrow")
    assert "geo" in said.partition("hint: ")[2]


def test_a_time_that_is_none_and_one_time_for_several_scenes_are_refused(call, tmp_path, bundle):
    scenes = [write_tif(tmp_path / f"{name}.tif", sea(60, 60, [])) for name in "ab"]
    code, _, said = call(scenes[0], "--time", "noon")
    assert code == 2
    assert said.startswith("error: The time of the scene is not a time: got noon, expected a date and a time, such as")
    code, _, said = call(tmp_path / "*.tif", "--time", "2026-05-01T10:20:30Z")
    assert code == 2
    assert said == (
        "error: --time is the time of one scene: got 2 scenes.\n"
        "hint: State the time of each scene in a STAC item beside it (SCENE.stac.json).\n"
    )
    assert not (tmp_path / "out").exists()
