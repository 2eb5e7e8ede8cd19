"""Fuzzing: scrambled georeferences, control points, areas, labels and STAC files give results or an error message.

`make fuzz` changes 2,000 files, the test suite a tenth of them, with fixed seeds.
"""

import io
import json
import math
import random
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes.fake_scene import CLASSES, sea
from fakes.scrambled_files import FILES, scrambled_bytes, scrambled_content
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from deploy.scene.read.aoi import aoi_mask_of, read_aoi
from deploy.scene.read.geojson import box_geometries
from deploy.scene.read.georeference import Georeference, map_polygons, map_rings
from deploy.scene.read.scene import Scene
from deploy.scene.read.scene_list import read_sources
from deploy.scene.scene_score import read_ground_truth
from ifkd.core.errors import DataError, SceneError, UsageError
from ifkd.core.tiling import TileGrid

SYSTEMS = (
    "EPSG:4326", "EPSG:32633", "EPSG:3857", "EPSG:3413", "EPSG:4807", "EPSG:4978", "EPSG:5773", "EPSG:32633+5773",
    'LOCAL_CS["drawing",UNIT["metre",1]]', "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m", "+proj=gnom +lat_0=90",
)  # fmt: skip
NUMBERS = (
    0.0,
    1.0,
    -1.0,
    2.0,
    1e-3,
    1e-12,
    1e-300,
    180.0,
    -180.0,
    359.5,
    5e5,
    4.5e6,
    -2e7,
    1e30,
    1e308,
    math.nan,
    math.inf,
)
GEOREFERENCE_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
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
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[15, 40.64], [15.1, 40.64], [15.1, 40.7], [15, 40.7], [15, 40.64]]],
            },
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


def number(rng):
    return rng.choice(NUMBERS) if rng.random() < 0.5 else rng.uniform(-200, 200)


def georeference(rng):
    """Return the profile and the control points of a raster, plausible or not."""
    system = CRS.from_user_input(rng.choice(SYSTEMS))
    kind = rng.random()
    if kind < 0.4:
        return {"crs": system, "transform": Affine(*(number(rng) for _ in range(6)))}, None
    if kind < 0.5:
        return {"crs": system}, None
    points = [
        [col, row, 10 + col / 100 + rng.uniform(0, 0.01), 50 - row / 100] for row in (0, 20, 40) for col in (0, 30, 60)
    ]
    for _ in range(rng.randint(0, 3)):
        rng.choice(points)[rng.randrange(4)] = number(rng)
    points = points[: rng.choice((0, 1, 2, 3, 4, 9, 9, 9))] * rng.choice((1, 1, 2))
    return {}, ([GroundControlPoint(row, col, x, y) for col, row, x, y in points], system)


def scramble_tags(content, rng):
    """Change bytes in the values of the georeference tags of a little-endian GeoTIFF."""
    start = int.from_bytes(content[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12):
        tag, kind = (int.from_bytes(content[entry + at : entry + at + 2], "little") for at in (0, 2))
        count, value = (int.from_bytes(content[entry + at : entry + at + 4], "little") for at in (4, 8))
        if tag in GEOREFERENCE_TAGS:
            size = {2: 1, 3: 2, 12: 8}[kind] * count
            for _ in range(rng.randint(0, 4)):
                content[(value if size > 4 else entry + 8) + rng.randrange(size)] = rng.randrange(256)


def write_scene(path, rng):
    profile, gcps = georeference(rng)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.MemoryFile() as memory:
            with memory.open(
                driver="GTiff", height=SIZE[0], width=SIZE[1], count=3, dtype="uint8", **profile
            ) as target:
                if gcps and gcps[0]:
                    target.gcps = gcps
                target.write(sea(*SIZE, OBJECTS).transpose(2, 0, 1))
            stream.write(memory.read())
    content = bytearray(stream.getvalue())
    if rng.random() < 0.5:
        scramble_tags(content, rng)
    path.write_bytes(content)


def locate(scene):
    """Use the georeference of a scene in every way."""
    place = scene.georeference
    if place is None:
        assert scene.place_problem
        return False
    finite = np.isfinite(map_rings(place, BOXES)).all(axis=(1, 2))
    assert finite.all() or place.gcps  # only control points may give no place
    assert [polygon is not None for polygon in map_polygons(place, BOXES)] == finite.tolist()
    if place.lonlat_problem(scene.size) is not None:
        return False
    assert place.gsd_m(scene.size) is None or place.gsd_m(scene.size) > 0
    lonlat = place.to_lonlat(BOXES.reshape(-1, 2))
    assert (np.abs(lonlat[np.isfinite(lonlat).all(axis=1)]) <= [180, 90]).all()
    place.from_lonlat(np.array([[10, 50], [180, 90], [-180, -90], [0, 0], [200, 95]]), scene.size)
    assert len(box_geometries(place, BOXES)) == len(BOXES)
    return True


def test_scrambled_georeferences(tmp_path):
    rng = random.Random(0)  # noqa: S311 - a fixed seed
    located = []
    for _ in range(FILES // 4):
        write_scene(tmp_path / "s.tif", rng)
        try:
            with Scene(tmp_path / "s.tif") as scene:
                located.append(locate(scene.info))
        except SceneError:
            located.append(None)
    assert {True, False} <= set(located)


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
    assert {(3,), UsageError} <= set(results)


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
