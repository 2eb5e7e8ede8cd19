"""Acquisition times: of the option, of STAC items in and beside lists of scenes, and of TIFF tags."""

import json
from pathlib import Path

import pandas as pd
import pytest
import rasterio
from fakes.fake_scene import sea, write_tif
from hypothesis import given
from hypothesis import strategies as st

from deploy.scene.read.acquisition_time import item_time, stated_time, tag_time, time_beside
from deploy.scene.read.scene import Scene
from deploy.scene.read.scene_list import read_sources
from ifkd.core.errors import DataError, UsageError
from ifkd.imagery.address import RasterAddress


def item(**properties):
    assets = {"image": {"href": "a.tif", "type": "image/tiff"}}
    return {"type": "Feature", "stac_version": "1.0.0", "id": "a", "assets": assets, "properties": properties}


@given(st.datetimes(timezones=st.timezones()).filter(lambda moment: 1700 < moment.year < 2200))
def test_times_are_those_of_pandas(moment):
    text = moment.isoformat()
    if len(text.rpartition(":")[2]) > 2 or text.count(":") > 3:  # offsets with seconds are no times by RFC 3339
        return
    expected = pd.Timestamp(text).tz_convert("UTC").floor("ms")
    written = str(stated_time(text))
    assert written.endswith("Z")
    assert pd.Timestamp(written) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01T10:20:30Z", "2026-05-01T10:20:30Z"),
        ("2026-05-01t10:20:30z", "2026-05-01T10:20:30Z"),
        ("2026-05-01 10:20", "2026-05-01T10:20:00Z"),
        ("2026-05-01T01:20:30.123456789+02:00", "2026-04-30T23:20:30.123Z"),
    ],
)
def test_forms_of_times(text, expected):
    assert str(stated_time(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-05-01", "20260501T102030Z", "2026-13-01T00:00Z", "0001-01-01T00:00:00+14:00"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match=r"is not a time: got .*expected a date and a time, such as 2026-05-01T10:20"):
        stated_time(text)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"datetime": "2026-05-01T10:20:30Z"}, "2026-05-01T10:20:30Z"),
        (
            {"datetime": None, "start_datetime": "2026-05-01T10:20:00Z", "end_datetime": "2026-05-01T10:20:03Z"},
            "2026-05-01T10:20:01.500Z",
        ),
        ({"start_datetime": "2026-05-01T00:00:00Z", "end_datetime": "2026-05-31T00:00:00Z"}, None),
        ({"start_datetime": "2026-05-01T00:00:01Z", "end_datetime": "2026-05-01T00:00:00Z"}, None),
        ({"start_datetime": "2026-05-01T00:00:00Z"}, None),
        ({}, None),
    ],
)
def test_time_of_a_stac_item(properties, expected):
    time = item_time(item(**properties), Path("items.json"))
    assert (time and str(time)) == expected
    assert time is None or time.source.endswith("of items.json")


@pytest.mark.parametrize("value", ["soon", "2026-05-01", 20260501, ["2026-05-01T10:20:30Z"]])
def test_a_stac_item_whose_time_is_none_is_refused(value, tmp_path):
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item(datetime=value)))
    with pytest.raises(DataError, match=r"item\.json: the datetime of the STAC item is not a time: got .*expected"):
        read_sources([str(path)])


def test_scenes_of_stac_items_have_their_times(tmp_path):
    items = [item(datetime=f"2026-05-0{n}T10:20:30Z") | {"id": f"s{n}"} for n in (1, 2)]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    sources = read_sources([str(tmp_path / "items.json")])
    assert [str(source.time) for source in sources] == ["2026-05-01T10:20:30Z", "2026-05-02T10:20:30Z"]
    assert {source.time.source for source in sources} == {"datetime of items.json"}


def test_the_stac_item_beside_a_scene_states_its_time(tmp_path):
    scene = tmp_path / "day.1.tif"
    scene.touch()
    assert time_beside(scene) is None
    labels = {"images": [], "annotations": [], "categories": []}
    for content in (json.dumps(labels), "not JSON", json.dumps({"type": "FeatureCollection", "features": []})):
        (tmp_path / "day.1.json").write_text(content)  # labels, for example
        assert time_beside(scene) is None
    (tmp_path / "day.1.json").write_text(json.dumps(item(datetime="2026-05-01T10:20:30Z")))
    assert str(read_sources([str(scene)])[0].time) == "2026-05-01T10:20:30Z"
    (tmp_path / "day.1.stac.json").write_text(json.dumps(item(datetime="2026-05-02T10:20:30Z")))
    assert str(read_sources([str(tmp_path / "*.tif")])[0].time) == "2026-05-02T10:20:30Z"
    (tmp_path / "day.1.stac.json").write_text(json.dumps(labels))
    with pytest.raises(DataError, match=r"day\.1\.stac\.json is not a STAC item: expected an object of type Feature"):
        time_beside(scene)
    assert time_beside(RasterAddress("/vsicurl/https://host/day.tif")) is None
    assert time_beside(tmp_path / f"{'x' * 250}.tif") is None


def test_the_tag_of_a_tiff_is_taken_for_utc(tmp_path):
    scene = write_tif(tmp_path / "s.tif", sea(60, 60, []))
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2026:05:01 10:20:30")
    with Scene(scene) as opened:
        assert (str(opened.info.time), opened.info.time.source) == ("2026-05-01T10:20:30Z", "TIFFTAG_DATETIME")
    with Scene(scene, time=stated_time("2026-05-02T00:00Z")) as opened:
        assert str(opened.info.time) == "2026-05-02T00:00:00Z"
    assert tag_time({}) is None


def test_a_tag_that_is_no_time_gives_none_and_a_remark(tmp_path):
    scene = write_tif(tmp_path / "s.tif", sea(60, 60, []))
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="0000:00:00 00:00:00")
    with Scene(scene) as opened:
        assert opened.info.time is None
        assert opened.info.remarks == (
            "The TIFFTAG_DATETIME of s.tif is not a time: '0000:00:00 00:00:00'. State the time with --time.",
        )
