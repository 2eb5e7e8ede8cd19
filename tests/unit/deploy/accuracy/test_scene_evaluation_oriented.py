"""Evaluate the written oriented boxes of a scene against labels."""

import json

import numpy as np
import pyproj
import pytest
import shapely
from fakes.fake_scene import CATEGORY_IDS, CLASSES, write_bundle
from fakes.oriented_scene import HARBOR_SIZE, SYSTEMS, OrientedEngine, harbor

from deploy.cli.main import main

SYSTEM = "EPSG:32633"


@pytest.fixture
def detected(tmp_path, monkeypatch):
    """Detect the ships of a harbor, and write their labels, in map coordinates and in pixels."""
    bundle = write_bundle(tmp_path / "bundle", tile=128, overlap=90).path
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: OrientedEngine(tile=128))
    outlines = harbor(tmp_path / "harbor.tif", SYSTEM)
    assert main(["detect", str(bundle), str(tmp_path / "harbor.tif"), "--out", str(tmp_path / "out")]) == 0
    to_lonlat = pyproj.Transformer.from_crs(SYSTEM, "EPSG:4326", always_xy=True).transform
    features, annotations = [], []
    for number, outline in enumerate(outlines):
        geometry = shapely.Polygon(np.column_stack(to_lonlat(*outline.T)))
        feature = {"type": "Feature", "properties": {"class_name": CLASSES[0]}, "geometry": geometry.__geo_interface__}
        features.append(feature)
        pixels = np.column_stack(~SYSTEMS[SYSTEM] @ tuple(outline.T))
        (x1, y1), (x2, y2) = pixels.min(axis=0).tolist(), pixels.max(axis=0).tolist()
        ids = {"id": number + 1, "image_id": 1, "category_id": CATEGORY_IDS[0]}
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1.0, "iscrowd": 0, "segmentation": [pixels.ravel().tolist()]}
        annotations.append({**ids, **box})
    content = {"type": "FeatureCollection", "features": features}
    (tmp_path / "labels.geojson").write_text(json.dumps(content))
    image = {"id": 1, "file_name": "harbor.tif", "height": HARBOR_SIZE[0], "width": HARBOR_SIZE[1]}
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    coco = {"images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "labels.json").write_text(json.dumps(coco))
    return tmp_path


def evaluate(folder, labels, *options):
    out = folder / "evaluation.json"
    command = ["evaluate", str(folder / "out"), "--scene", str(folder / labels), "--out", str(out), *options]
    assert main(command) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("labels", ["labels.geojson", "labels.json"])
def test_oriented_boxes_are_compared_as_such(detected, capsys, labels):
    score = evaluate(detected, labels)
    assert score["boxes"] == "oriented"
    assert (score["precision"], score["recall"]) == (1.0, 1.0)
    assert score["ap75"] == pytest.approx(1.0)
    assert score["operational"]["total"]["detected"] == 5
    # The longer sides of the ships are 70 m; those of the upright boxes around them are less.
    assert score["operational"]["per_size"]["medium"]["objects"] == 5
    assert "IoU 0.5 of oriented boxes" in capsys.readouterr().out
    assert evaluate(detected, labels, "--boxes", "upright")["boxes"] == "upright"


def test_the_pixels_alone_give_the_same(detected):
    score = evaluate(detected, "labels.json")
    (detected / "out" / "detections.geojson").unlink()
    assert evaluate(detected, "labels.json")["mean_ap"] == pytest.approx(score["mean_ap"], abs=0.02)


def test_labels_without_corners_are_compared_by_upright_boxes(detected, capsys):
    content = json.loads((detected / "labels.json").read_text())
    for one in content["annotations"]:
        del one["segmentation"]
    (detected / "labels.json").write_text(json.dumps(content))
    assert evaluate(detected, "labels.json")["boxes"] == "upright"
    capsys.readouterr()
    command = ["evaluate", str(detected / "out"), "--scene", str(detected / "labels.json"), "--boxes", "oriented"]
    assert main(command) == 2
    assert "no oriented boxes" in capsys.readouterr().err
