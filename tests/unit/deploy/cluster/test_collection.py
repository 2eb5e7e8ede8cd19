"""STAC collections of batch runs, validated by PySTAC."""

import json

import pystac
import pytest
from fakes.fake_scene import UTM, CountingEngine, sea, write_bundle, write_tif
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from deploy.cli.main import main
from deploy.cluster.collection import detection_collection, write_collection
from deploy.cluster.summary import SceneEntry
from deploy.scene.write.file_names import COLLECTION_FILE

LOCAL = 'LOCAL_CS["drawing",UNIT["metre",1]]'


@pytest.fixture
def manifest(tmp_path):
    return write_bundle(tmp_path / "bundle").manifest


def entry(name, bbox, time=None):
    return SceneEntry(name=name, source=f"{name}.tif", state="done", bbox=bbox, time=time)


def validated(content):
    """Validate a collection offline, and return its extent."""
    JsonSchemaSTACValidator().validate_core(content, pystac.STACObjectType.COLLECTION, "1.1.0")
    return pystac.Collection.from_dict(content).extent.to_dict()


def test_a_run_of_many_scenes_writes_a_catalog(manifest, tmp_path, monkeypatch):
    del manifest
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    (tmp_path / "scenes").mkdir()
    for name in ("harbor one", "sea", "drawing"):
        crs = LOCAL if name == "drawing" else UTM
        write_tif(tmp_path / "scenes" / f"{name}.tif", sea(170, 200, [(5, 5, 17, 15, 0)]), crs=crs)
    words = ["detect", str(tmp_path / "bundle"), str(tmp_path / "scenes" / "*.tif"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    path = tmp_path / "out" / COLLECTION_FILE
    validated(json.loads(path.read_text()))
    collection = pystac.Collection.from_file(str(path))
    items = {item.id: item for item in collection.get_items()}
    assert len(items) == 2
    for item in items.values():
        content = item.to_dict(transform_hrefs=False)
        JsonSchemaSTACValidator().validate_core(content, pystac.STACObjectType.ITEM, "1.1.0")
        assert item.collection_id == collection.id
        linked = pystac.Item.from_file(item.self_href).get_single_link("collection")
        assert linked is not None
        assert linked.get_absolute_href() == str(path)
    bounds = [item.bbox for item in items.values() if item.bbox]
    assert collection.extent.spatial.bboxes == [bounds[0]]


def test_the_extent_covers_all_scenes(manifest):
    entries = [
        entry("a", (10.0, 50.0, 11.0, 51.0), "2026-05-01T10:00:00.250Z"),
        entry("b", (12.0, 49.0, 12.5, 50.5), "2026-05-01T10:00:00Z"),
    ]
    extent = validated(detection_collection(entries, manifest))
    assert extent["spatial"]["bbox"] == [[10.0, 49.0, 12.5, 51.0]]
    assert detection_collection(entries, manifest)["extent"]["temporal"]["interval"] == [
        ["2026-05-01T10:00:00Z", "2026-05-01T10:00:00.250Z"]
    ]


def test_a_scene_without_a_time_leaves_the_interval_open(manifest):
    entries = [entry("a", (10.0, 50.0, 11.0, 51.0), "2026-05-01T10:00:00Z"), entry("b", (10.0, 50.0, 11.0, 51.0))]
    assert validated(detection_collection(entries, manifest))["temporal"]["interval"] == [[None, None]]


def test_an_extent_across_the_antimeridian_is_the_narrow_one(manifest):
    entries = [entry("a", (179.0, 0.0, -179.5, 1.0)), entry("b", (-179.6, 0.5, -178.0, 2.0))]
    assert validated(detection_collection(entries, manifest))["spatial"]["bbox"] == [[179.0, 0.0, -178.0, 2.0]]


def test_without_places_there_is_no_collection(manifest, tmp_path):
    (tmp_path / COLLECTION_FILE).write_text("of an earlier run")
    assert write_collection([entry("a", None)], manifest, tmp_path) == []
    assert not (tmp_path / COLLECTION_FILE).exists()
