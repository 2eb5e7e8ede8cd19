"""Oriented boxes in all formats: in the right place on the map, by readers of others."""

import csv
import json
import re

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
import shapely.affinity
from fakes.fake_scene import CATEGORY_IDS, CountingEngine, write_bundle, write_tif
from fakes.oriented_scene import GEOID, HARBOR_SIZE, LENGTH_M, SHIPS, SYSTEMS, WIDTH_M, OrientedEngine, harbor, painted
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from deploy.cli.main import main


@pytest.fixture
def detect(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle", tile=128, overlap=90).path
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: OrientedEngine(tile=128))

    def run(scene, *options, out="out"):
        assert main(["detect", str(bundle), str(scene), "--out", str(tmp_path / out), *map(str, options)]) == 0
        return tmp_path / out

    return run


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_ships_of_known_heading_are_found_on_the_map(detect, tmp_path, system):
    outlines = harbor(tmp_path / "harbor.tif", system)
    out = detect(tmp_path / "harbor.tif", "--format", "geojson", "gpkg", "parquet", "coco", "csv")
    local = "EPSG:32633"
    truth = geopandas.GeoSeries(list(map(shapely.Polygon, outlines)), crs=system).to_crs(local)
    frames = [
        geopandas.read_file(out / "detections.geojson"),
        geopandas.read_file(out / "detections.gpkg", layer="detections"),
    ]
    frames.append(geopandas.read_parquet(out / "detections.parquet"))
    for frame in frames:
        assert len(frame) == len(SHIPS)
        found = frame.to_crs(local)
        for (_, _, heading), polygon in zip(SHIPS, truth, strict=True):
            overlap = found.intersection(polygon).area / found.union(polygon).area
            best = found.loc[overlap.idxmax()]
            assert overlap.max() > 0.8
            assert abs((best.heading_deg - heading + 90) % 180 - 90) < 2
            assert best.length_m == pytest.approx(LENGTH_M, abs=3)
            assert best.width_m == pytest.approx(WIDTH_M, abs=3)
            assert len(best.geometry.exterior.coords) == 5


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_headings_and_lengths_are_those_of_the_written_polygons(detect, tmp_path, system):
    harbor(tmp_path / "harbor.tif", system)
    out = detect(tmp_path / "harbor.tif")
    frame = geopandas.read_file(out / "detections.gpkg", layer="detections")
    to_lonlat = pyproj.Transformer.from_crs(system, "EPSG:4326", always_xy=True).transform
    rings = np.array([polygon.exterior.coords[:4] for polygon in frame.geometry])
    middles = (rings + np.roll(rings, -1, axis=1)) / 2
    lonlat = np.stack(to_lonlat(middles[..., 0], middles[..., 1]), axis=2)
    sides = []
    for one in (0, 1):
        azimuth, _, length = GEOID.inv(*lonlat[:, one].T, *lonlat[:, one + 2].T)
        sides.append((length, azimuth))
    longer = np.argmax([length for length, _ in sides], axis=0)
    lengths, azimuths = (np.choose(longer, values) for values in zip(*sides, strict=True))
    np.testing.assert_allclose(frame.length_m, lengths, atol=0.01)
    assert np.abs((frame.heading_deg - azimuths + 90) % 180 - 90).max() < 0.02
    for rows in (json.loads((out / "detections.geojson").read_text())["features"], table(out)):
        assert [float(row.get("properties", row)["heading_deg"]) for row in rows] == frame.heading_deg.tolist()


def table(out):
    return list(csv.DictReader((out / "detections.csv").read_text().splitlines()))


def test_coco_results_have_the_corners_that_the_table_has(detect, tmp_path):
    harbor(tmp_path / "harbor.tif", "EPSG:32633")
    out = detect(tmp_path / "harbor.tif")
    rows = json.loads((out / "detections.coco.json").read_text())
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "height": HARBOR_SIZE[0], "width": HARBOR_SIZE[1]}],
        "categories": [{"id": one} for one in CATEGORY_IDS],
        "annotations": [],
    }
    coco.createIndex()
    loaded = coco.loadRes(rows)
    for row, annotation in zip(table(out), loaded.loadAnns(loaded.getAnnIds()), strict=True):
        x, y, length, width, angle = (
            float(row[name]) for name in ("center_x_px", "center_y_px", "length_px", "width_px", "angle_deg")
        )
        flat = shapely.box(x - length / 2, y - width / 2, x + length / 2, y + width / 2)
        turned = shapely.affinity.rotate(flat, angle, origin=(x, y))
        polygon = shapely.Polygon(np.reshape(annotation["segmentation"], (4, 2)))
        assert turned.symmetric_difference(polygon).area < 0.5
        x1, y1, w, h = annotation["bbox"]
        assert polygon.intersection(shapely.box(x1, y1, x1 + w, y1 + h)).area > 0.999 * polygon.area
        assert int(mask.area(coco.annToRLE(annotation))) == pytest.approx(polygon.area, rel=0.05)


def test_without_places_headings_are_unknown(detect, tmp_path):
    ship = np.array([[20, 20], [80, 60], [70, 75], [10, 35]])
    Image.fromarray(painted(HARBOR_SIZE, [ship], [0])).save(tmp_path / "s.png")
    write_bundle(tmp_path / "bundle", tile=128, overlap=90, gsd_m=2.0)
    (row,) = table(detect(tmp_path / "s.png"))
    assert row["heading_deg"] == ""
    assert float(row["length_m"]) == pytest.approx(2 * float(row["length_px"]), abs=0.01)
    assert float(row["width_m"]) == pytest.approx(2 * float(row["width_px"]), abs=0.01)


def test_a_scene_without_data_has_the_columns_of_oriented_boxes(detect, tmp_path):
    write_tif(tmp_path / "empty.tif", np.zeros((*HARBOR_SIZE, 3), np.uint8), nodata=0)
    out = detect(tmp_path / "empty.tif")
    assert "heading_deg" in (out / "detections.csv").read_text().splitlines()[0].split(",")
    assert "heading_deg" in geopandas.read_file(out / "detections.gpkg", layer="detections").columns


def test_upright_detections_have_no_heading(detect, tmp_path, monkeypatch):
    harbor(tmp_path / "harbor.tif", "EPSG:32633")
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine(tile=128))
    out = detect(tmp_path / "harbor.tif")
    assert "heading_deg" not in table(out)[0]
    assert "segmentation" not in json.loads((out / "detections.coco.json").read_text())[0]


def test_pictures_show_the_turned_boxes(detect, tmp_path):
    harbor(tmp_path / "harbor.tif", "EPSG:32633")
    out = detect(tmp_path / "harbor.tif")
    page = (out / "map.html").read_text()
    corners = np.array(json.loads(re.search(r'"corners":(\[\[\[.*?\]\]\])', page)[1]))
    expected = json.loads((out / "detections.coco.json").read_text())
    np.testing.assert_allclose(corners.reshape(-1, 8), [row["segmentation"][0] for row in expected], atol=0.06)
    headings = json.loads(re.search(r'"headings_deg":(\[.*?\])', page)[1])
    assert headings == [float(row["heading_deg"]) for row in table(out)]
