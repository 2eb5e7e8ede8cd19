"""Fuzzing: scrambled areas of interest, labels and STAC files give results or an error message.

`make fuzz` changes 2,000 files, the test suite a tenth of them, with fixed seeds.
"""

import json
import random

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes.fake_scene import CLASSES, sea
from fakes.scrambled_files import FILES, scrambled_bytes, scrambled_content

from deploy.scene.read.aoi import aoi_mask_of, read_aoi
from deploy.scene.read.georeference import Georeference
from deploy.scene.read.scene import Scene
from deploy.scene.read.scene_list import read_sources
from deploy.scene.scene_score import read_ground_truth
from ifkd.core.errors import DataError, SceneError, UsageError
from ifkd.core.tiling import TileGrid

SIZE = (40, 60)
BOXES = np.array([[1, 2, 9, 8], [0, 0, 60, 40], [50, 30, 60, 40]], np.float32)
OBJECTS = [(5, 5, 17, 15, 0), (30, 20, 44, 32, 1)]
AREA = {
    "type": "FeatureCollection",
    "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}},
    "features": [
        {
            "type": "Feature",
            "properties": {"class_name": CLASSES[0], "ignore": False},
            "geometry": {"type": "Polygon", "coordinates": [[[15, 40.64], [15.1, 40.64], [15.1, 40.7], [15, 40.64]]]},
        },
        {
            "type": "Feature",
            "properties": {"class": CLASSES[1]},
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[[[14.9, 40.6], [15.01, 40.6], [15.01, 40.65], [14.9, 40.6]]]],
            },
        },
    ],
}
ITEM = {
    "type": "Feature", "id": "item", "bbox": [1, 2, 3, 4], "properties": {"datetime": None},
    "links": [{"rel": "self", "href": "https://example.com/items/item.json"}],
    "assets": {
        "image": {"href": "../image.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]},
        "preview": {"href": "preview.png", "type": "image/png", "roles": ["overview"]},
    },
}  # fmt: skip


def scrambled(content, path, rng):
    """Write a randomly changed copy of JSON content, or of its bytes."""
    if rng.random() < 0.8:
        path.write_text(scrambled_content(content, rng))
    else:
        path.write_bytes(scrambled_bytes(json.dumps(content).encode(), rng))
    return path


@pytest.fixture
def scene_info(tmp_path):
    with rasterio.open(
        tmp_path / "s.tif", "w", driver="GTiff", height=40, width=60, count=3, dtype="uint8", crs="EPSG:32633",
        transform=Affine(2, 0, 5e5, 0, -2, 4.5e6),
    ) as target:  # fmt: skip
        target.write(sea(*SIZE, OBJECTS).transpose(2, 0, 1))
    with Scene(tmp_path / "s.tif") as scene:
        return scene.info


def test_scrambled_areas_of_interest(tmp_path, scene_info):
    rng = random.Random(2)  # noqa: S311 - a fixed seed
    grid = TileGrid(SIZE, (32, 32), 8)
    results = []
    for _ in range(FILES // 4):
        try:
            mask = aoi_mask_of(read_aoi(scrambled(AREA, tmp_path / "a.geojson", rng)), scene_info, grid)
            results.append(mask.contains(BOXES).shape)
        except (SceneError, UsageError) as error:
            results.append(type(error))
    assert {(3,), SceneError, UsageError} <= set(results)


def test_scrambled_labels(tmp_path, scene_info):
    rng = random.Random(3)  # noqa: S311 - a fixed seed
    results = []
    for _ in range(FILES // 4):
        path = scrambled(AREA, tmp_path / "t.geojson", rng)
        try:
            read_ground_truth(path, scene="s.tif", size=SIZE, classes=CLASSES, georeference=scene_info.georeference)
            results.append(None)
        except DataError as error:
            results.append(type(error))
    assert isinstance(scene_info.georeference, Georeference)
    assert {None, DataError} <= set(results)


def test_scrambled_stac_items(tmp_path):
    rng = random.Random(4)  # noqa: S311 - a fixed seed
    contents = (ITEM, {"type": "FeatureCollection", "features": [ITEM, {**ITEM, "id": "other"}]})
    results = []
    for _ in range(FILES // 4):
        try:
            read_sources([str(scrambled(rng.choice(contents), tmp_path / "items.json", rng))])
            results.append(None)
        except (DataError, UsageError) as error:
            results.append(type(error))
    assert {None, DataError} <= set(results)
