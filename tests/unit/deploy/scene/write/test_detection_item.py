"""STAC items of detections, validated by PySTAC."""

import hashlib
import json

import pystac
import pytest
import rasterio.warp
import shapely
from affine import Affine
from fakes.fake_scene import UTM, CountingEngine, sea, write_bundle, write_tif
from pystac.extensions.file import FileExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from deploy.cli.main import main
from deploy.scene.write.file_names import ITEM_FILE
from export.bundle.bundle import add_file
from export.bundle.description import ITEM_NAME

OBJECTS = [(5, 5, 17, 15, 0), (120, 118, 140, 130, 1)]
LOCAL = 'LOCAL_CS["drawing",UNIT["metre",1]]'
PIXELS = sea(170, 200, OBJECTS)


@pytest.fixture
def bundle(tmp_path):
    """A fake bundle with a file in the place of the item of its model."""
    bundle = write_bundle(tmp_path / "bundle")
    (bundle.path / ITEM_NAME).write_text("{}")
    return add_file(bundle, ITEM_NAME, kind="description")


@pytest.fixture
def call(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())

    def run(scene, *options):
        assert main(["detect", str(bundle.path), str(scene), "--out", str(tmp_path / "out"), *options]) == 0
        return tmp_path / "out" / ITEM_FILE

    return run


def validated(path):
    """Validate an item offline, and return it."""
    content = json.loads(path.read_text())
    JsonSchemaSTACValidator().validate_core(content, pystac.STACObjectType.ITEM, "1.1.0")
    return pystac.Item.from_file(str(path))


def test_the_item_has_the_outline_and_the_time_of_the_scene(call, tmp_path):
    scene = write_tif(tmp_path / "harbor.tif", PIXELS)
    item = validated(call(scene, "--time", "2026-05-01T10:20:30Z"))
    with rasterio.open(scene) as dataset:
        bounds = rasterio.warp.transform_bounds(UTM, "EPSG:4326", *dataset.bounds)
    assert item.bbox == pytest.approx(bounds, abs=1e-6)
    assert shapely.geometry.shape(item.geometry).bounds == pytest.approx(bounds, abs=1e-6)
    assert item.to_dict()["properties"]["datetime"] == "2026-05-01T10:20:30Z"
    assert item.properties["gsd"] == pytest.approx(2.0, rel=0.01)
    assert item.properties["ifkd:objects_per_class"] == {"cargo": 1, "tanker": 1}
    assert item.properties["processing:level"] == "L4"
    assert item.id.startswith("harbor-")
    assert item.collection_id is None


def test_the_item_is_derived_from_the_scene_and_the_model(call, bundle, tmp_path):
    scene = write_tif(tmp_path / "harbor.tif", PIXELS)
    source, model = validated(call(scene)).get_links("derived_from")
    assert (source.target, source.media_type) == (str(scene), "image/tiff; application=geotiff")
    assert (model.target, model.media_type) == (str(bundle.path / ITEM_NAME), "application/geo+json")
    assert model.extra_fields == {"mlm:name": "ships", "processing:level": "L4"}


def test_assets_are_the_files_with_their_digests(call, tmp_path):
    path = call(write_tif(tmp_path / "harbor.tif", PIXELS), "--crops", "1")
    item = validated(path)
    names = {one.name for one in path.parent.iterdir() if one.is_file()}
    assert set(item.assets) == names - {ITEM_FILE}
    for name, asset in item.assets.items():
        if name != "run.json":  # it has the seconds of the run
            content = (path.parent / asset.href).read_bytes()
            file = FileExtension.ext(asset)
            assert (file.size, file.checksum) == (len(content), f"1220{hashlib.sha256(content).hexdigest()}")


def test_an_unknown_time_is_every_time(call, tmp_path):
    item = validated(call(write_tif(tmp_path / "harbor.tif", PIXELS)))
    assert item.datetime is None
    assert item.properties["start_datetime"] == "1900-01-01T00:00:00Z"
    assert item.properties["end_datetime"] == "9999-12-31T23:59:59Z"


def test_a_scene_across_the_antimeridian_has_two_polygons(call, tmp_path):
    transform = Affine(0.001, 0.0, 179.9, 0.0, -0.001, 10.0)
    item = validated(call(write_tif(tmp_path / "pacific.tif", PIXELS, crs="EPSG:4326", transform=transform)))
    assert item.geometry["type"] == "MultiPolygon"
    west, _, east, _ = item.bbox
    assert (west, east) == pytest.approx((179.9, -179.9))


def test_a_scene_without_a_place_has_no_item(call, tmp_path):
    assert not call(write_tif(tmp_path / "drawing.tif", PIXELS, crs=LOCAL)).exists()
