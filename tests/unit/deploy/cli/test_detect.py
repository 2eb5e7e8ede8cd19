import csv
import json
import re
import shutil
import warnings

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from fakes.fake_scene import CATEGORY_IDS, CLASSES, UTM, CountingEngine, as_set, sea, write_bundle, write_tif
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from deploy.cli.main import main
from deploy.scene.run.pipeline import detect
from deploy.scene.write.file_names import RESULT_FILES, RUN_FILE, STATE_FOLDER

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
PIXELS = sea(170, 200, OBJECTS)
EVERYTHING = {*RESULT_FILES, RUN_FILE}
PROPERTIES = {"class_id", "class_name", "score", "scene", "time", "length_m", "width_m", "tile", "model_sha256"}
LOCAL = 'LOCAL_CS["drawing",UNIT["metre",1]]'


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle").path


@pytest.fixture
def scene(tmp_path):
    return write_tif(tmp_path / "harbor.tif", PIXELS)


@pytest.fixture
def call(bundle, tmp_path, capsys):
    def run(scene, *options, out=None):
        code = main(["detect", str(bundle), str(scene), "--out", str(out or tmp_path / "out"), *map(str, options)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_everything_is_written_and_said(call, scene, out):
    code, printed, _ = call(scene)
    assert code == 0
    assert {path.name for path in out.iterdir()} == EVERYTHING
    assert "4 objects in harbor.tif (200 x 170 px, 20 tiles processed, 0 empty)" in printed
    assert "  cargo: 3\n  tanker: 1\n" in printed
    assert f"Results: {out} (detections.geojson, " in printed


def test_geojson_is_what_gdal_and_shapely_make_of_the_boxes(call, scene, out):
    call(scene)
    content = json.loads((out / "detections.geojson").read_text())
    assert set(content) == {"type", "bbox", "features"}
    with rasterio.open(scene) as dataset:
        transform = dataset.transform
    frame = geopandas.read_file(out / "detections.geojson")
    assert frame.crs.to_epsg() == 4326
    np.testing.assert_allclose(frame.total_bounds, content["bbox"])
    in_utm = frame.to_crs(UTM)
    expected = {
        (*(transform @ (x1, y2)), *(transform @ (x2, y1)), CATEGORY_IDS[label], CLASSES[label])
        for x1, y1, x2, y2, label in OBJECTS
    }
    got = {(*(round(v, 1) for v in row.geometry.bounds), row.class_id, row.class_name) for row in in_utm.itertuples()}
    assert got == expected
    for feature in content["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert shapely.LinearRing(ring).is_ccw
        assert all(len(repr(value).split(".")[1]) <= 7 for point in ring for value in point)
        properties = feature["properties"]
        assert set(properties) == PROPERTIES
        assert (properties["scene"], properties["model_sha256"]) == ("harbor.tif", "f" * 64)
        assert re.fullmatch(r"r[0-3]c[0-4]", properties["tile"])
        assert 0.3 < properties["score"] <= 1


def test_geopackage_is_in_the_scenes_own_system_also_when_it_is_turned(call, tmp_path, out):
    turned = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 4_500_000)
    call(write_tif(tmp_path / "turned.tif", PIXELS, transform=turned))
    frame = pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")
    assert frame.crs.to_epsg() == 32633
    assert set(frame.columns) == PROPERTIES | {"geometry"}
    for x1, y1, x2, y2, label in OBJECTS:
        true = shapely.Polygon([turned @ corner for corner in [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]])
        nearest = frame.iloc[frame.geometry.distance(true.centroid).argmin()]
        assert nearest.geometry.symmetric_difference(true).area < 1e-6
        assert nearest.class_name == CLASSES[label]


def test_coco_results_are_scored_by_pycocotools(call, scene, out):
    call(scene)
    results = json.loads((out / "detections.coco.json").read_text())
    truth = COCO()
    truth.dataset = labels("harbor.tif", image_id=1)
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[1] == pytest.approx(1.0)


def labels(name, *, image_id=11, extra=()):
    return {
        "info": {},
        "images": [{"id": image_id, "file_name": name, "height": 170, "width": 200}],
        "categories": [
            {"id": 3, "name": "tanker"}, {"id": 7, "name": "cargo"}, {"id": 9, "name": "kayak"},
        ],
        "annotations": [
            {
                "id": index, "image_id": image_id, "category_id": category, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            }
            for index, (x1, y1, x2, y2, category) in enumerate(
                [*((*box[:4], CATEGORY_IDS[box[4]]) for box in OBJECTS), *extra], start=1
            )
        ],
    }  # fmt: skip


def test_csv_has_pixels_and_places(call, scene, out):
    call(scene)
    with (out / "detections.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {tuple(round(float(row[key])) for key in ("x1_px", "y1_px", "x2_px", "y2_px")) for row in rows} == {
        box[:4] for box in OBJECTS
    }
    assert all(14.9 < float(row["longitude"]) < 15.1 and 40 < float(row["latitude"]) < 41 for row in rows)


def test_run_json_says_how_it_was_made(call, scene, out, bundle):
    call(scene, "--score-threshold", 0.4, "--overlap-px", 24, "--batch", 2)
    run = json.loads((out / RUN_FILE).read_text())
    assert run["producer"].startswith("ifkd detect ")
    assert run["settings"]["overlap_px"] == 24
    assert run["settings"]["postprocess"]["score_threshold"] == 0.4
    assert run["engine"]["sha256"] == "f" * 64
    assert run["scene"]["crs"] == UTM
    assert run["scene"]["gsd_m"] == pytest.approx(2.0, rel=0.01)
    assert run["scene"]["contrast_stretch"]["rule"] == "as is"
    assert run["objects_per_class"] == {"cargo": 3, "tanker": 1}
    assert run["tiles"]["count"] == 20
    assert set(run["seconds"]) >= {"read", "preprocess", "infer", "decode", "merge", "write", "total"}
    assert {*run["files"], RUN_FILE} == EVERYTHING


def test_json_prints_run_json(call, scene, out):
    code, printed, _ = call(scene, "--json")
    assert code == 0
    assert json.loads(printed) == json.loads((out / RUN_FILE).read_text())


def test_two_runs_give_the_same_bytes(call, scene, tmp_path):
    call(scene, out=tmp_path / "one")
    call(scene, "--batch", 1, out=tmp_path / "two")
    for name in EVERYTHING - {RUN_FILE}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_formats_are_chosen_and_stale_ones_go(call, scene, out):
    call(scene)
    (out / "notes.txt").write_text("mine")
    code, _, _ = call(scene, "--format", "csv", "coco")
    assert code == 0
    assert {path.name for path in out.iterdir()} == {
        "detections.csv", "detections.coco.json", "quicklook.png", "quicklook_detail.png", "map.html", RUN_FILE,
        "detections.stac.json", "notes.txt",
    }  # fmt: skip


def test_files_of_others_are_not_overwritten(call, scene, out):
    out.mkdir()
    (out / "detections.csv").write_text("precious")
    code, _, said = call(scene)
    assert code == 2
    assert "has detections.csv, not written by ifkd detect.\nhint: Choose another folder with --out" in said
    assert (out / "detections.csv").read_text() == "precious"
    (out / RUN_FILE).write_text('{"producer": "somebody else"}')
    assert call(scene)[0] == 2


def test_a_run_that_was_cut_off_is_taken_over(call, scene, out):
    call(scene)
    (out / RUN_FILE).unlink()
    (out / STATE_FOLDER).mkdir()
    (out / STATE_FOLDER / "detections.csv").write_text("half")
    assert call(scene)[0] == 0
    assert {path.name for path in out.iterdir()} == EVERYTHING


def test_a_place_that_cannot_be_written_is_said_before_the_work(call, scene, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "file").write_text("no folder")
    code, _, said = call(scene, out=tmp_path / "file")
    assert code == 2
    assert f"Cannot write {tmp_path / 'file'}" in said
    assert call(scene, out=tmp_path / "file" / "deeper")[0] == 2


def plain(tmp_path):
    """Write the scene without any coordinate system."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return write_tif(tmp_path / "plain.tif", PIXELS, crs=None)


def test_a_scene_without_coordinates_gets_pixels_and_one_clear_line(call, tmp_path, out):
    code, _, said = call(plain(tmp_path))
    assert code == 0
    places = {"detections.geojson", "detections.gpkg", "detections.stac.json"}
    assert {path.name for path in out.iterdir()} == EVERYTHING - places
    line = "ifkd: No geojson and gpkg: plain.tif has no coordinate system, so its objects have no map coordinates.\n"
    assert line in said
    header = (out / "detections.csv").read_text().splitlines()[0]
    assert header == "class_id,class_name,score,x1_px,y1_px,x2_px,y2_px,tile,time,length_m,width_m"


@pytest.mark.parametrize("name", ["geojson", "gpkg"])
def test_a_map_format_of_a_scene_without_coordinates_is_refused_before_the_work(call, tmp_path, out, name):
    code, _, said = call(plain(tmp_path), "--format", name, "csv")
    assert code == 2
    assert f"plain.tif cannot be written as {name}: plain.tif has no coordinate system" in said
    assert "Use --format coco csv" in said
    assert not out.exists()


def test_a_system_without_a_path_to_wgs84_gets_its_own_geopackage(call, tmp_path, out):
    path = write_tif(tmp_path / "local.tif", PIXELS, crs=LOCAL, transform=Affine(1, 0, 100, 0, -1, 200))
    code, _, said = call(path)
    assert code == 0
    assert "No geojson: the coordinate system 'drawing' cannot be converted to WGS84." in said
    assert len(pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")) == 4
    code, _, said = call(path, "--format", "geojson", out=tmp_path / "other")
    assert code == 2
    assert (
        "local.tif cannot be written as geojson: the coordinate system 'drawing' cannot be converted to WGS84" in said
    )


def test_gcps_place_objects(call, tmp_path, out):
    points = [GroundControlPoint(row=r, col=c, x=10 + c / 1000, y=50 - r / 1000) for r in (0, 170) for c in (0, 200)]
    path = plain(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as dataset:
            dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    assert call(path)[0] == 0
    frame = geopandas.read_file(out / "detections.geojson")
    west, south, east, north = frame.total_bounds
    assert [west, south, east, north] == pytest.approx([10.005, 49.83, 10.2, 49.995], abs=1e-6)
    assert json.loads((out / RUN_FILE).read_text())["scene"]["georeference"] == "gcps"


def test_a_scene_over_the_antimeridian(call, tmp_path, out):
    path = write_tif(tmp_path / "s.tif", PIXELS, crs="EPSG:4326", transform=Affine(0.001, 0, 179.94, 0, -0.001, 10))
    assert call(path)[0] == 0
    frame = geopandas.read_file(out / "detections.geojson")
    assert frame.geometry.is_valid.all()
    assert shapely.area(frame.geometry.to_numpy()).max() < 0.001
    assert (frame.geometry.geom_type == "MultiPolygon").sum() == 1  # the tanker, at columns 50 to 68
    bbox = json.loads((out / "detections.geojson").read_text())["bbox"]
    assert bbox[0] > 179
    assert bbox[2] < -179


@pytest.mark.parametrize("system", ["EPSG:4326", "EPSG:3857"])
def test_table_and_page_have_the_longitudes_of_the_map(call, tmp_path, out, system):
    transform = {
        "EPSG:4326": Affine(0.001, 0, 179.94, 0, -0.001, 10),
        "EPSG:3857": Affine(100, 0, 20_037_508 - 6_000, 0, -100, 1e6),
    }[system]
    assert call(write_tif(tmp_path / "s.tif", PIXELS, crs=system, transform=transform))[0] == 0
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    table = np.array([[float(row["longitude"]), float(row["latitude"])] for row in rows])
    page = np.array(json.loads(re.search(r'"lonlat":(\[\[.*?\]\])', (out / "map.html").read_text())[1]))
    assert table[:, 0].min() < -179
    assert table[:, 0].max() > 179
    assert np.abs(table).max() <= 180
    np.testing.assert_allclose(page, table, atol=1e-6)
    shapes = [shapely.geometry.shape(one["geometry"]) for one in
              json.loads((out / "detections.geojson").read_text())["features"]]  # fmt: skip
    for place, drawn in zip(table, shapes, strict=True):
        assert drawn.buffer(1e-6).covers(shapely.Point(place))


def test_objects_off_the_earth_are_in_every_file_without_a_place(call, tmp_path, out):
    geostationary = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m"
    transform = Affine(2000, 0, 5.2e6, 0, -2000, 1e5)  # the Earth ends at column 117
    assert call(write_tif(tmp_path / "s.tif", PIXELS, crs=geostationary, transform=transform))[0] == 0
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    features = json.loads((out / "detections.geojson").read_text())["features"]
    page = json.loads(re.search(r'"lonlat":(\[.*?\]),"unreadable"', (out / "map.html").read_text())[1])
    on_earth = [float(row["x1_px"]) < 110 for row in rows]
    assert sorted(on_earth) == [False, False, True, True]
    assert [row["longitude"] != "" for row in rows] == on_earth
    assert [row["latitude"] != "" for row in rows] == on_earth
    assert [one["geometry"] is not None for one in features] == on_earth
    assert [place is not None for place in page] == on_earth
    assert len(pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")) == 4


@pytest.mark.parametrize(
    ("system", "transform", "message"),
    [
        ("EPSG:4326", Affine(2, 0, 5e5, 0, -2, 5e6), "coordinates such as 500002, 4999998 are no degrees"),
        ("EPSG:4326", Affine(1, 0, 5, 0, -1, 0), "are no degrees, as 'WGS 84' has"),
        (UTM, Affine(1e-5, 0, 15, 0, -1e-5, 45), "a pixel would be 1e-05 m wide, so the coordinates are not those of"),
        ("EPSG:4978", Affine(2, 0, 5e5, 0, -2, 5e6), "'WGS 84' cannot be converted to WGS84"),
        ("EPSG:5773", Affine(2, 0, 5e5, 0, -2, 5e6), "cannot be converted to WGS84"),
        (UTM, Affine(2, 4, 5e5, 1, 2, 5e6), "s.tif has a transform without an inverse (2, 4, 500000, 1, 2, 5e+06)"),
    ],
)
def test_a_mislabeled_scene_is_not_put_on_the_map(call, tmp_path, out, system, transform, message):
    path = write_tif(tmp_path / "s.tif", sea(170, 250, OBJECTS), crs=system, transform=transform)
    code, _, said = call(path)
    assert code == 0
    assert re.search(r"No geojson.*: .*" + re.escape(message), said)
    assert not (out / "detections.geojson").exists()
    assert "longitude" not in (out / "detections.csv").read_text()
    assert call(path, "--format", "geojson", out=tmp_path / "other")[0] == 2


def test_labels_score_the_scene(call, scene, tmp_path, out):
    truth = tmp_path / "truth.json"
    kayak = (100, 20, 110, 30, 9)
    missed = (150, 20, 160, 30, 7)
    truth.write_text(json.dumps(labels("harbor.tif", extra=[kayak, missed])))
    code, printed, _ = call(scene, "--ground-truth", truth)
    assert code == 0
    score = json.loads((out / RUN_FILE).read_text())["score"]
    assert (score["objects"], score["unknown_objects"], score["image_id"]) == (5, 1, 11)
    assert (score["precision"], score["recall"], score["f1"]) == (1.0, 0.8, pytest.approx(8 / 9))
    assert score["per_class"]["cargo"]["recall"] == 0.75
    assert score["per_class"]["tanker"]["ap50"] == pytest.approx(1.0)
    # Boxes found are those labeled, so that the average precision is the same at every IoU: 3 of 4 and 1 of 1 recalled.
    shares = [score[key] for key in ("mean_ap", "ap50", "ap75")]
    assert shares == pytest.approx([(1.0 + 76 / 101) / 2] * 3)
    assert "Against 5 labeled objects, at score 0.3 and IoU 0.5: mAP" in printed
    results = json.loads((out / "detections.coco.json").read_text())
    assert {row["image_id"] for row in results} == {11}


def test_objects_of_unknown_classes_excuse_what_is_found_on_them(call, scene, tmp_path, out):
    content = labels("harbor.tif")
    content["annotations"][1]["category_id"] = 9
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))
    call(scene, "--ground-truth", truth)
    score = json.loads((out / RUN_FILE).read_text())["score"]
    assert (score["precision"], score["recall"], score["ap50"]) == pytest.approx((1.0, 1.0, 1.0))
    assert score["per_class"]["tanker"] == {
        "mean_ap": None, "ap50": None, "ap75": None, "precision": None, "recall": None, "f1": None,
        "objects": 0, "detections": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "other.tif"}, r"lists no images with the name harbor\.tif: got other\.tif, expected one"),
        ({"height": 171}, r"are of another raster: got 200x171 \(width x height\), expected 200x170"),
    ],
)
def test_labels_of_another_scene_are_refused_before_the_work(call, scene, tmp_path, change, message):
    content = labels("harbor.tif")
    content["images"][0].update(change)
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))
    code, _, said = call(scene, "--ground-truth", truth)
    assert code == 2
    assert re.search(message, said)
    content["images"] = [{**content["images"][0], "id": n, "file_name": f"{n}.png"} for n in (11, 12)]
    truth.write_text(json.dumps(content))
    code, _, said = call(scene, "--ground-truth", truth)
    assert code == 2
    assert "lists no images with the name harbor.tif: got 11.png, 12.png, expected one" in said


def test_a_truncated_scene_is_processed_as_far_as_it_is_readable(call, tmp_path, out):
    path = write_tif(tmp_path / "cut.tif", PIXELS, blockysize=10)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    code, printed, said = call(path, "--json")
    assert code == 1
    assert (
        "10 of 20 tiles of cut.tif could not be read; the results of the others are written. The first is r2c0" in said
    )
    run = json.loads((out / RUN_FILE).read_text())
    assert json.loads(printed) == run
    assert [tile["tile"] for tile in run["tiles"]["unreadable"]][:2] == ["r2c0", "r2c1"]
    assert {path.name for path in out.iterdir()} == EVERYTHING
    assert len(pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")) == 2
    shutil.rmtree(out)
    code, _, said = call(path, "--strict")
    assert code == 2
    assert "The run stops here because of --strict" in said
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, r"There is no scene .*bad\.tif"),
        (lambda path: path.write_text("a text"), r"bad\.tif is not a raster that can be read"),
        (lambda path: path.mkdir(), r"bad\.tif is a folder, not a scene"),
    ],
)
def test_bad_scenes_are_said_in_one_line(call, tmp_path, out, make, message):
    make(tmp_path / "bad.tif")
    code, printed, said = call(tmp_path / "bad.tif")
    assert (code, printed) == (2, "")
    assert re.match(rf"error: .*{message}", said)
    assert said.count("\n") == 1 + ("\nhint: " in said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlap-px", 64), "smaller than the engine's tile: got 64 with tiles of 64x64"),
        (("--score-threshold", 2), "at least 0 and below 1: got 2.0"),
        (("--batch", 9), "The batch does not fit the engine: got 9, expected 1 to 4"),
        (("--bands", 1, 2), "got 1 2, expected one or three of 1 2 3"),
        (("--scale-range", 9, 1), "the lower first: got 9 1"),
        (("--gsd-m", 0.5), "does not state the ground sample distance"),
    ],
)
def test_settings_that_do_not_fit_are_said(call, scene, options, message):
    code, _, said = call(scene, *options)
    assert code == 2
    assert message in said


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (30, 20)])
def test_small_scenes(call, tmp_path, out, size):
    code, printed, _ = call(write_tif(tmp_path / "small.tif", sea(*size, [])))
    assert code == 0
    assert "0 objects in small.tif" in printed
    assert len(pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")) == 0
    assert len(geopandas.read_file(out / "detections.geojson")) == 0
    assert json.loads((out / "detections.coco.json").read_text()) == []
    with Image.open(out / "quicklook.png") as picture:
        assert picture.width >= 700


def test_a_scene_of_nodata(call, tmp_path, out):
    code, printed, _ = call(write_tif(tmp_path / "empty.tif", np.zeros((90, 90), np.uint16), nodata=0))
    assert code == 0
    assert "0 objects in empty.tif (90 x 90 px, 0 tiles processed, 4 empty)" in printed


def test_a_geodataframe_is_the_geopackage(bundle, scene, call, out):
    call(scene, "--time", "2026-05-01T10:20:30.5Z")
    frame = detect(bundle, scene, acquired="2026-05-01T10:20:30.5Z").to_geodataframe()
    written = pyogrio.read_dataframe(out / "detections.gpkg", layer="detections")
    assert frame.crs.to_epsg() == 32633
    assert frame.drop(columns="geometry").equals(written.drop(columns="geometry")[frame.columns[:-1]])
    assert frame.geometry.geom_equals_exact(written.geometry, tolerance=1e-9).all()
    assert detect(bundle, PIXELS).to_geodataframe().crs is None
    assert as_set(detect(bundle, PIXELS).detections) == set(OBJECTS)


def test_a_missing_geopandas_is_named(bundle, monkeypatch):
    from ifkd.core.errors import MissingExtraError

    result = detect(bundle, PIXELS)
    monkeypatch.setitem(__import__("sys").modules, "geopandas", None)
    with pytest.raises(MissingExtraError, match="needs the package geopandas"):
        result.to_geodataframe()


def test_tiles_of_another_size_are_taken_where_the_bundle_takes_them(scene, tmp_path, out, monkeypatch, capsys):
    engine = CountingEngine(sides=(32, 128))
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
    several = write_bundle(tmp_path / "several", sides=[32, 128]).path
    assert main(["detect", str(several), str(scene), "--out", str(out), "--tile", "96"]) == 0
    record = json.loads((out / RUN_FILE).read_text())
    assert (record["tiles"]["height_px"], record["settings"]["tile_px"], record["objects"]) == (96, [96, 96], 4)
    assert {tiles.shape[2:] for tiles in engine.batches} == {(96, 96)}
    capsys.readouterr()
    assert main(["detect", str(several), str(scene), "--out", str(out), "--tile", "160"]) == 2
    assert "got 160 x 160 px, expected sides of 32 to 128 px, multiples of 32" in capsys.readouterr().err
