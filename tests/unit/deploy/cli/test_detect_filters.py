"""Filters of `ifkd detect`: properties in all outputs, the account in run.json, and resumed runs."""

import csv
import json
import math

import geopandas
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from fakes.fake_scene import UTM, CountingEngine, FailingEngine, FakeEngineError, sea, write_bundle, write_tif

from deploy.cli.main import main
from deploy.scene.filters import read_filters
from deploy.scene.run.pipeline import detect
from deploy.scene.write.file_names import RESULT_FILES, RUN_FILE

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
CENTERS = [(11, 10), (59, 46), (130, 124), (195, 165)]
TRANSFORM = Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 4_500_000.0)
GEOD = pyproj.Geod(ellps="WGS84")


@pytest.fixture
def scene(tmp_path):
    return write_tif(tmp_path / "harbor.tif", sea(170, 200, OBJECTS), transform=TRANSFORM)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def call(bundle, tmp_path, monkeypatch, capsys):
    def run(*arguments, out=None, engine=None):
        engine = engine or CountingEngine()
        monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
        code = main(["detect", str(bundle), "--out", str(out or tmp_path / "out"), *map(str, arguments)])
        return code, *capsys.readouterr(), engine

    return run


def on_map(*points):
    return [TRANSFORM @ point for point in points]


def write(path, geometries, *, crs=UTM, **columns):
    """Write geometries in the scene's coordinates, in the coordinate system and the format of the path."""
    frame = geopandas.GeoDataFrame(columns, geometry=list(geometries), crs=UTM)
    frame.to_crs(crs).to_file(path)
    return path


@pytest.fixture
def land(tmp_path):
    return write(tmp_path / "land.gpkg", [shapely.Polygon(on_map((0, 0), (61, 0), (61, 60), (0, 60)))])


@pytest.fixture
def rigs(tmp_path):
    points = shapely.points(on_map((130, 120), (0, 165)))
    return write(tmp_path / "rigs.geojson", points, crs="EPSG:4326", name=["Ada", "Ben"])


@pytest.fixture
def coast(tmp_path):
    return write(tmp_path / "coast.shp", [shapely.LineString(on_map((-500, 0), (500, 0)))], crs="EPSG:3857")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in RESULT_FILES}


def test_dropped_detections_are_in_no_output(call, scene, land, tmp_path):
    code, printed, _, _ = call(scene, "--exclude", land)
    assert code == 0
    assert "2 objects in harbor.tif" in printed
    assert "Filters, of 4 detections: 2 dropped in land.gpkg\nResults: " in printed
    out = tmp_path / "out"
    assert len(json.loads((out / "detections.geojson").read_text())["features"]) == 2
    assert len(json.loads((out / "detections.coco.json").read_text())) == 2
    assert len(pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")) == 2
    assert len((out / "detections.csv").read_text().splitlines()) == 3
    run = json.loads((out / RUN_FILE).read_text())
    assert run["objects"] == 2
    assert run["filters"]["detections"] == 4
    assert run["filters"]["excluded"] == "dropped"
    (record,) = run["filters"]["exclude"]
    assert (record["source"], record["detections"], len(record["sha256"])) == ("land.gpkg", 2, 64)


def test_tags_are_in_all_geographic_outputs(call, scene, land, rigs, coast, tmp_path):
    options = ["--exclude", land, "--tag", "--near", rigs, "--within", 50, "--coast", coast]
    code, printed, said, _ = call(scene, *options)
    assert code == 0, said
    assert "2 tagged in land.gpkg, 1 within 50 m of rigs.geojson, distances to coast.shp" in printed
    out = tmp_path / "out"
    lonlat = geopandas.GeoSeries(shapely.points(on_map(*CENTERS)), crs=UTM).to_crs(4326)
    rig = geopandas.read_file(rigs).geometry[0]
    shore = geopandas.read_file(coast).to_crs(UTM).geometry[0]
    expected = {}
    for center, point in zip(CENTERS, lonlat, strict=True):
        rig_m = GEOD.inv(point.x, point.y, rig.x, rig.y)[2]
        shore_m = shapely.distance(shapely.Point(on_map(center)[0]), shore)
        near = ("Ada", pytest.approx(rig_m, abs=0.06)) if rig_m <= 50 else (None, None)
        expected[center] = (center[0] <= 61, *near, pytest.approx(shore_m, rel=1e-3, abs=0.1))
    features = json.loads((out / "detections.geojson").read_text())["features"]
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    frame = pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")
    assert frame.dtypes[["excluded", "near_m", "coast_m"]].astype(str).tolist() == ["bool", "float64", "float64"]
    columns = ["excluded", "near", "near_m", "coast_m"]
    found = {}
    for feature, row, table in zip(features, rows, frame.itertuples(), strict=True):
        box = [float(row[name]) for name in ("x1_px", "y1_px", "x2_px", "y2_px")]
        center = (round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2))
        found[center] = tuple(feature["properties"][name] for name in columns)
        texts = ["" if value is None else str(value) for value in found[center]]
        assert [row[name] for name in columns] == texts
        values = [getattr(table, name) for name in columns]
        assert [None if isinstance(value, float) and math.isnan(value) else value for value in values] == list(
            found[center]
        )
    assert found == expected
    assert sum(near is not None for _, near, _, _ in found.values()) == 1


def test_filters_of_the_python_interface(bundle, scene, land, call):
    call(scene)  # the engine
    result = detect(bundle, scene).filtered(read_filters(exclude=[land], tag=True))
    assert sorted(result.to_geodataframe()["excluded"]) == [False, False, True, True]
    assert len(detect(bundle, scene).filtered(read_filters(exclude=[land])).detections) == 2


@pytest.mark.parametrize(
    "option", [["--exclude", "f.gpkg"], ["--near", "p.gpkg", "--within", "5"], ["--coast", "f.gpkg"]]
)
def test_a_scene_without_a_coordinate_system_is_refused_before_the_work(call, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.gpkg", [shapely.box(0, 0, 1, 1)])
    write(tmp_path / "p.gpkg", [shapely.Point(0, 0)])
    scene = write_tif(tmp_path / "plain.tif", sea(170, 200, OBJECTS), crs=None, transform=TRANSFORM)
    code, _, said, engine = call(scene, *option)
    assert (code, engine.batches) == (2, [])
    assert "plain.tif has no coordinate system, so its detections cannot be compared with the files of" in said
    assert not (tmp_path / "out").exists()


def test_files_with_features_that_are_left_out_are_reported(call, scene, tmp_path):
    land = write(tmp_path / "land.gpkg", [shapely.box(0, 0, 1, 1), None])
    _, _, said, _ = call(scene, "--exclude", land)
    assert "ifkd: land.gpkg, 2 features: 1 without a geometry, left out." in said


def test_a_resumed_run_has_the_files_of_its_own_filters(call, scene, land, rigs, tmp_path):
    """Rows of tiles do not depend on filters, so they are kept when a filter changes."""
    call(scene, "--exclude", land, out=tmp_path / "dropped")
    near = ["--near", rigs, "--within", 50]
    call(scene, *near, out=tmp_path / "near")
    for name, options in (("dropped", ["--exclude", land]), ("near", near)):
        out = tmp_path / f"resumed {name}"
        with pytest.raises(FakeEngineError):
            call(scene, "--exclude", land, out=out, engine=FailingEngine(3))
        code, _, said, engine = call(scene, *options, out=out)
        assert code == 0
        assert "Resuming" in said
        assert sum(map(len, engine.batches)) < 20
        assert files(out) == files(tmp_path / name)


def test_completed_scenes_of_other_filters_are_processed_again(call, scene, land, rigs, tmp_path):
    scenes = [scene, write_tif(tmp_path / "b.tif", sea(170, 200, OBJECTS[:2]), transform=TRANSFORM)]
    near = ["--near", rigs, "--within", 50]
    call(*scenes, *near, out=tmp_path / "whole")
    for before, resumed in ((near, "completed 1 of 2 scenes"), (["--exclude", land], None)):
        out = tmp_path / f"out {resumed}"
        with pytest.raises(FakeEngineError):
            call(*scenes, *before, out=out, engine=FailingEngine(7))
        code, _, said, _ = call(*scenes, *near, out=out)
        assert code == 0
        assert ("completed 1 of 2 scenes" in said) == (resumed is not None)
        assert files(out) == files(tmp_path / "whole")
