"""Properties of detections are the same in all formats."""

import csv
import json
import sqlite3

import pandas as pd
import pyogrio
import pytest
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif

from deploy.cli.main import main

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
    assert (pyogrio.read_dataframe(out / "detections.gpkg").time == pd.Timestamp(time)).all()
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
    assert pyogrio.read_dataframe(out / "detections.gpkg").time.isna().all()
    record = json.loads((out / "run.json").read_text())["scene"]
    assert (record["time"], record["time_source"]) == (None, None)


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
