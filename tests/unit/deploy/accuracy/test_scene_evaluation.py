"""`ifkd evaluate DETECTIONS --scene LABELS`: labels in pixels and on the map give the same metrics."""

import json

import pytest
from affine import Affine
from fakes.fake_scene import CATEGORY_IDS, CLASSES, CountingEngine, sea, write_bundle, write_tif
from rasterio.warp import transform as warp
from scipy.stats import binomtest, chi2

from deploy.accuracy.scene_evaluation import evaluate_scene
from deploy.cli.main import main
from deploy.scene.operational_figures import OperationalFigures
from ifkd.core.errors import DataError

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
MISSED = (150, 20, 160, 30, 0)
ALARM = (20, 60, 30, 66, 1)
TURNED = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 4_500_000)


@pytest.fixture(params=["north_up", "turned", "antimeridian"])
def place(request):
    return {
        "north_up": ("EPSG:32633", Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 4_500_000.0)),
        "turned": ("EPSG:32633", TURNED),
        "antimeridian": ("EPSG:4326", Affine(0.001, 0, 179.94, 0, -0.001, 10)),
    }[request.param]


@pytest.fixture
def detections(tmp_path, place, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    crs, transform = place
    scene = write_tif(tmp_path / "harbor.tif", sea(170, 200, [*OBJECTS, ALARM]), crs=crs, transform=transform)
    out = tmp_path / "out"
    assert main(["detect", str(write_bundle(tmp_path / "b").path), str(scene), "--out", str(out)]) == 0
    return out


def coco(path, boxes, *, size=(170, 200)):
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 4, "file_name": "harbor.tif", "height": size[0], "width": size[1]}],
                "categories": [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)],
                "annotations": [
                    {
                        "id": n, "image_id": 4, "category_id": CATEGORY_IDS[label], "iscrowd": 0,
                        "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                    }
                    for n, (x1, y1, x2, y2, label) in enumerate(boxes, start=1)
                ],
            }
        )
    )  # fmt: skip
    return path


def geojson(path, boxes, place, *, ignore=(), key="class_name"):
    crs, transform = place
    features = []
    for box in boxes:
        x1, y1, x2, y2, label = box
        ring = [(x1, y1), (x1, y2), (x2, y2), (x2, y1), (x1, y1)]
        x, y = zip(*(transform @ point for point in ring), strict=True)
        longitude, latitude = warp(crs, "EPSG:4326", list(x), list(y))
        geometry = {
            "type": "Polygon",
            "coordinates": [[[(lon + 180) % 360 - 180, lat] for lon, lat in zip(longitude, latitude, strict=True)]],
        }
        properties = {key: CLASSES[label], "ignore": box in ignore}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_labels_in_pixels_and_on_the_map_give_the_same_figures(detections, place, tmp_path):
    labels = [*OBJECTS, MISSED]
    one = evaluate_scene(detections, coco(tmp_path / "t.json", labels))
    other = evaluate_scene(detections, geojson(tmp_path / "t.geojson", labels, place, key="class"))
    assert one.model_dump(exclude={"ground_truth", "image_id"}) == other.model_dump(
        exclude={"ground_truth", "image_id"}
    )
    assert (one.objects, one.detections) == (5, 5)
    assert (one.precision, one.recall, one.f1) == (0.8, 0.8, pytest.approx(0.8))
    assert one.per_class["cargo"].f1 == pytest.approx(6 / 7)
    assert one.per_class["tanker"].precision == 0.5
    assert one.per_class["cargo"].ap50 == pytest.approx(76 / 101)  # recall 3/4 at precision 1, of 101 points


def test_the_threshold_is_for_precision_recall_and_f1_alone(detections, tmp_path):
    ground_truth = coco(tmp_path / "t.json", OBJECTS)
    all_of_them, best = (
        evaluate_scene(detections, ground_truth),
        evaluate_scene(detections, ground_truth, score_threshold=0.7),
    )
    assert best.ap50 == all_of_them.ap50
    assert best.detections < all_of_them.detections
    assert best.recall < all_of_them.recall
    assert evaluate_scene(detections, ground_truth, score_threshold=1.0).precision is None


def test_ignored_labels_do_not_count(detections, place, tmp_path):
    score = evaluate_scene(detections, geojson(tmp_path / "t.geojson", [*OBJECTS, ALARM], place, ignore=[ALARM]))
    assert (score.objects, score.precision, score.recall) == (4, 1.0, 1.0)


def test_the_command_writes_the_result_and_prints_a_table(detections, tmp_path, capsys):
    ground_truth, out = coco(tmp_path / "t.json", [*OBJECTS, MISSED]), tmp_path / "e.json"
    assert (
        main(["evaluate", str(detections), "--scene", str(ground_truth), "--out", str(out), "--score-threshold", "0.4"])
        == 0
    )
    printed = capsys.readouterr().out
    assert f"Labels {ground_truth}, score from 0.4, IoU 0.5" in printed
    first, second = printed.split("\n\n")
    assert [line.split()[0] for line in first.splitlines()[3:]] == ["all", *CLASSES]
    assert [line.split("  ")[0] for line in second.splitlines()[3:9]] == [
        "all classes", "all, of any class", *CLASSES, "small, below 25 m", "medium, 25 m to 100 m",
    ]  # fmt: skip
    assert json.loads(out.read_text())["recall"] == 0.8


def test_operational_figures_of_the_command(detections, place, tmp_path, capsys):
    """Every label is 3 pixels away from its detection, so only the small ones have a low IoU."""
    moved = [(x1 + 3, y1, x2 + 3, y2, label) for x1, y1, x2, y2, label in [*OBJECTS[:3], MISSED]]
    ground_truth, out = coco(tmp_path / "t.json", moved), tmp_path / "e.json"
    pixel_m = run_of(detections)["scene"]["gsd_m"]
    found = {}
    for within in (2, 4):
        options = ["--within-m", str(within * pixel_m), "--size-limits", str(14 * pixel_m), str(500 * pixel_m)]
        assert main(["evaluate", str(detections), "--scene", str(ground_truth), "--out", str(out), *options]) == 0
        found[within] = json.loads(out.read_text())["operational"]
        printed = capsys.readouterr().out
        assert f"score from 0.3, centers closer than {within * pixel_m:g} m, " in printed
        assert "km² searched, 95% intervals" in printed
    assert (found[2]["total"]["detected"], found[2]["total"]["false_alarms"]) == (0, 5)
    total = found[4]["total"]
    assert (total["objects"], total["detected"], total["false_alarms"]) == (4, 3, 2)
    assert total["detection_probability_interval"] == pytest.approx(
        binomtest(3, 4).proportion_ci(method="wilson"), abs=1e-9
    )
    assert found[4]["area_km2"] == pytest.approx(170 * 200 * pixel_m**2 / 1e6)
    expected = [chi2.ppf(0.025, 4) / 2, chi2.ppf(0.975, 6) / 2]
    assert [x * found[4]["area_km2"] for x in total["false_alarms_per_km2_interval"]] == pytest.approx(expected)
    assert {name: one["objects"] for name, one in found[4]["per_class"].items()} == {"cargo": 3, "tanker": 1}
    assert found[4]["size_unit"] == "m"
    if place[0] == "EPSG:32633":
        assert {name: (one["objects"], one["detected"]) for name, one in found[4]["per_size"].items()} == {
            "small": (2, 1), "medium": (2, 2), "large": (0, 0),
        }  # fmt: skip
    assert evaluate_scene(detections, ground_truth).operational.total.detected == 3  # IoU of 9/15, 15/21 and 17/23


def test_figures_of_detect_are_those_of_evaluate(place, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    crs, transform = place
    scene = write_tif(tmp_path / "harbor.tif", sea(170, 200, [*OBJECTS, ALARM]), crs=crs, transform=transform)
    out, labels = tmp_path / "out", coco(tmp_path / "t.json", [*OBJECTS, MISSED])
    bundle = str(write_bundle(tmp_path / "b").path)
    assert main(["detect", bundle, str(scene), "--out", str(out), "--ground-truth", str(labels)]) == 0
    written, again = run_of(out)["score"]["operational"], evaluate_scene(out, labels).operational
    assert OperationalFigures.model_validate(written) == again


def test_distances_need_a_ground_sample_distance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    transform = Affine(2.0, 0.0, 0.0, 0.0, -2.0, 0.0)
    scene = write_tif(tmp_path / "harbor.tif", sea(170, 200, OBJECTS), crs=None, transform=transform)
    out, labels = tmp_path / "out", coco(tmp_path / "t.json", OBJECTS)
    assert main(["detect", str(write_bundle(tmp_path / "b").path), str(scene), "--out", str(out)]) == 0
    figures = evaluate_scene(out, labels).operational
    assert (figures.size_unit, figures.size_limits, figures.area_km2) == ("px", (32.0, 96.0), None)
    assert (figures.total.false_alarms, figures.total.false_alarms_per_km2) == (0, None)
    command = ["evaluate", str(out), "--scene", str(labels), "--out", str(tmp_path / "e.json")]
    for options, problem in (
        (["--within-m", "5"], "Distances in meters need the scene's georeference"),
        (["--within-m", "0"], "--within-m must be a distance in meters: got 0.0"),
        (["--size-limits", "9", "5"], "--size-limits must be two ascending sizes: got 9.0 5.0"),
    ):
        assert main([*command, *options]) == 2
        assert problem in capsys.readouterr().err


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_without_geojson_the_coco_file_is_read(detections, tmp_path):
    ground_truth = coco(tmp_path / "t.json", OBJECTS)
    before = evaluate_scene(detections, ground_truth)
    (detections / "detections.geojson").unlink()
    assert evaluate_scene(detections, ground_truth) == before
    (detections / "detections.coco.json").unlink()
    with pytest.raises(DataError, match=r"has no detections\.geojson and no detections\.coco\.json"):
        evaluate_scene(detections, ground_truth)


def test_detections_without_a_place_are_scored_in_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    geostationary = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m"
    pixels, transform = sea(170, 200, OBJECTS), Affine(2000, 0, 5.2e6, 0, -2000, 1e5)  # the Earth ends at column 117
    scene, out = write_tif(tmp_path / "harbor.tif", pixels, crs=geostationary, transform=transform), tmp_path / "out"
    assert main(["detect", str(write_bundle(tmp_path / "b").path), str(scene), "--out", str(out)]) == 0
    ground_truth = coco(tmp_path / "t.json", OBJECTS)
    assert evaluate_scene(out, ground_truth).recall == 1.0
    (out / "detections.coco.json").unlink()
    with pytest.raises(DataError, match=r"no detections\.coco\.json, and objects without a place"):
        evaluate_scene(out, ground_truth)


def test_labels_that_are_not_on_the_scene_are_refused(detections, place, tmp_path):
    def changed(change):
        path = geojson(tmp_path / "t.geojson", OBJECTS, place)
        content = json.loads(path.read_text())
        for feature in content["features"]:
            (ring,) = feature["geometry"]["coordinates"]
            feature["geometry"]["coordinates"] = [[change(*point) for point in ring]]
        path.write_text(json.dumps(content))
        return path

    assert evaluate_scene(detections, changed(lambda x, y: (x + 360, y) if x < 0 else (x, y))).recall == 1.0
    with pytest.raises(
        DataError, match=r"None of the 4 labels of .*t\.geojson is on harbor\.tif: got longitude"
    ) as found:
        evaluate_scene(detections, changed(lambda x, y: (x, y + 1)))
    assert found.value.hint is None
    if place[0] != "EPSG:4326":  # a longitude of 180 is no latitude
        with pytest.raises(DataError, match="None of the 4 labels") as found:
            evaluate_scene(detections, changed(lambda x, y: (y, x)))
        assert found.value.hint == "Longitude comes first in GeoJSON; here latitude seems to."
    with pytest.raises(DataError, match=r"not in longitude and latitude: got 500010, 4\.5e\+06, .*ogr2ogr -t_srs"):
        evaluate_scene(detections, changed(lambda *_: (500_010, 4_500_000)))
    path = geojson(tmp_path / "t.geojson", OBJECTS, place)
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "crs": crs}))
    with pytest.raises(DataError, match=r"not in longitude and latitude: got .*EPSG::3857"):
        evaluate_scene(detections, path)


def test_invalid_input_is_refused(detections, place, tmp_path, capsys):
    def message(*arguments):
        assert main(["evaluate", *map(str, arguments), "--out", str(tmp_path / "e.json")]) == 2
        assert not (tmp_path / "e.json").exists()
        return capsys.readouterr().err

    ground_truth = coco(tmp_path / "t.json", OBJECTS)
    assert "has no run.json" in message(tmp_path / "absent", "--scene", ground_truth)
    assert "--scene and --data exclude each other" in message(
        detections, "--scene", ground_truth, "--data", ground_truth
    )
    assert "--score-threshold must be from 0 to 1: got 3.0" in message(
        detections, "--scene", ground_truth, "--score-threshold", 3
    )
    other = coco(tmp_path / "o.json", OBJECTS, size=(171, 200))
    assert "are of another raster: got 200x171" in message(detections, "--scene", other)
    (tmp_path / "bad.geojson").write_text('{"type": "FeatureCollection", "features": [{"geometry": {}}]}')
    assert "is not a file of labels" in message(detections, "--scene", tmp_path / "bad.geojson")
    nothing = geojson(tmp_path / "n.geojson", [], place)
    assert "has none of the detector's classes: got []" in message(detections, "--scene", nothing)
    assert "There is no file of labels" in message(detections, "--scene", tmp_path / "absent.json")
