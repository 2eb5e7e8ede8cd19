"""Areas of interest: the processed tiles and the kept objects. Oracles: a slow version, and the entire scene."""

import json
import re
import warnings

import numpy as np
import pytest
import shapely
from affine import Affine
from fakes.fake_scene import CountingEngine, as_set, sea, write_bundle, write_tif
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform as warp

import deploy
from deploy.cli.main import main
from deploy.scene.read.aoi import AreaOfInterest, aoi_mask_of, read_aoi
from deploy.scene.read.georeference import Georeference
from deploy.scene.read.scene import SceneInfo
from deploy.scene.write.file_names import RUN_FILE
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import TileGrid
from ifkd.imagery.contrast import ContrastStretch
from ifkd.imagery.raster import RasterFile

OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
NORTH_UP = Affine(2.0, 0.0, 500_000.0, 0.0, -2.0, 4_500_000.0)
TURNED = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 4_500_000)


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch):
    engine = CountingEngine()
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
    return engine


def geojson(path, *rings, transform=NORTH_UP, crs="EPSG:32633", wrap="FeatureCollection"):
    """Write rings given in pixels as GeoJSON in degrees."""
    polygons = []
    for ring in rings:
        x, y = zip(*(transform @ point for point in [*ring, ring[0]]), strict=True)
        polygons.append([list(map(list, zip(*warp(crs, "EPSG:4326", list(x), list(y)), strict=True)))])
    geometry = {"type": "MultiPolygon", "coordinates": polygons}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    content = {
        "FeatureCollection": {"type": "FeatureCollection", "features": [feature]},
        "Feature": feature,
        "MultiPolygon": geometry,
    }[wrap]
    path.write_text(json.dumps(content))
    return path


def are_neighbors(one, other, grid):
    """Return whether a tile is another, or one of the eight around it."""
    rows, columns = grid.tops, grid.lefts
    down = rows.index(one.top) - rows.index(other.top)
    right = columns.index(one.left) - columns.index(other.left)
    return max(abs(down), abs(right)) <= 1


@pytest.mark.parametrize(("left", "right", "inside"), [(72.0, 75.5, True), (75.5, 80.0, False)])
def test_an_object_longer_than_the_overlap_is_that_of_the_entire_scene(tmp_path, left, right, inside):
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, [(40, 100, 110, 108, 1)]), transform=NORTH_UP)
    bundle = write_bundle(tmp_path / "b").path
    (whole,) = as_set(deploy.detect(bundle, scene).detections)
    area = geojson(tmp_path / "a.geojson", [(left, 95), (right, 95), (right, 115), (left, 115)])
    assert as_set(deploy.detect(bundle, scene, aoi=read_aoi(area)).detections) == ({whole} if inside else set())


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED])
@pytest.mark.parametrize("wrap", ["FeatureCollection", "Feature", "MultiPolygon"])
def test_objects_with_their_center_inside_stay_and_other_tiles_are_not_processed(
    tmp_path, fake_engine, transform, wrap
):
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS), transform=transform)
    area = geojson(tmp_path / "a.geojson", [(40, 30), (61, 30), (61, 60), (40, 60)], transform=transform, wrap=wrap)
    bundle = write_bundle(tmp_path / "b").path
    result = deploy.detect(bundle, scene, aoi=read_aoi(area))
    assert as_set(result.detections) == {OBJECTS[1]}
    grid = list(result.grid)
    touched = [
        window
        for window in grid
        if window.left <= 61 and window.right >= 40 and window.top <= 60 and window.bottom >= 30
    ]
    processed = [one for one in grid if any(are_neighbors(one, other, result.grid) for other in touched)]
    assert sum(map(len, fake_engine.batches)) == len(processed) < len(grid)
    assert result.outside == len(grid) - len(processed)
    whole = deploy.detect(bundle, scene)
    mine = whole.detections.select(np.array([box == OBJECTS[1][:4] for box in map(tuple, whole.detections.boxes)]))
    np.testing.assert_array_equal(result.detections.scores, mine.scores)


def test_an_area_reads_only_its_part_of_the_file(tmp_path, monkeypatch):
    scene = write_tif(tmp_path / "s.tif", sea(340, 1200, OBJECTS), tiled=True, blockxsize=16, blockysize=16)
    read = []
    original = RasterFile.read

    def noting(self, bands, window, **more):
        read.append(window)
        return original(self, bands, window, **more)

    monkeypatch.setattr(RasterFile, "read", noting)
    area = geojson(tmp_path / "a.geojson", [(800, 200), (810, 200), (810, 210), (800, 210)])
    deploy.detect(write_bundle(tmp_path / "b").path, scene, aoi=read_aoi(area))
    assert min(window.left for window in read) > 500
    assert max(window.right for window in read) < 1100
    assert min(window.top for window in read) > 100
    assert max(window.bottom for window in read) < 300


def test_the_command_reports_the_tiles_outside(tmp_path, capsys):
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS))
    area = geojson(tmp_path / "a.geojson", [(0, 0), (30, 0), (30, 30), (0, 30)])
    bundle = write_bundle(tmp_path / "b").path
    assert main(["detect", str(bundle), str(scene), "--out", str(tmp_path / "o"), "--aoi", str(area)]) == 0
    assert (
        "1 objects in s.tif (200 x 170 px, 4 tiles processed, 0 empty, 16 outside the area)" in capsys.readouterr().out
    )
    run = json.loads((tmp_path / "o" / RUN_FILE).read_text())
    assert run["tiles"]["outside_aoi"] == 16
    assert run["settings"]["aoi"]["source"] == "a.geojson"


def refused(tmp_path, capsys, area, scene=None):
    scene = scene or write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS))
    bundle = write_bundle(tmp_path / "b").path
    code = main(["detect", str(bundle), str(scene), "--out", str(tmp_path / "o"), "--aoi", str(area)])
    assert code == 2
    assert not (tmp_path / "o").exists()
    return capsys.readouterr().err


def test_an_area_outside_the_scene_is_said(tmp_path, capsys):
    area = geojson(tmp_path / "a.geojson", [(5000, 5000), (5100, 5000), (5100, 5100), (5000, 5100)])
    said = refused(tmp_path, capsys, area)
    assert re.match(
        r"error: The area of interest a\.geojson is outside s\.tif: got longitude 15\.\d{4} to 15\.\d{4}, latitude "
        r"40\.\d{4} to 40\.\d{4}, expected an area that touches longitude 15\.0000 to 15\.0047, latitude 40\.64",
        said,
    )


def test_an_area_needs_a_scene_on_the_map(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = write_tif(tmp_path / "plain.tif", sea(170, 200, []), crs=None)
    area = geojson(tmp_path / "a.geojson", [(0, 0), (30, 0), (30, 30), (0, 30)])
    said = refused(tmp_path, capsys, area, scene)
    assert "plain.tif has no coordinate system, so an area of interest cannot be located in it" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no area of interest .*a\.geojson"),
        ("{", r"is not a JSON file \("),
        ("SQLite format 3\0", r"It must be GeoJSON.*: ogr2ogr -t_srs EPSG:4326 area\.geojson .*a\.geojson$"),
        ("[1]", r"is not valid GeoJSON"),
        ('{"type": "Point", "coordinates": [1, 2]}', r"has no polygon: expected a Polygon or a MultiPolygon"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}', r"is not valid GeoJSON \(.*closed"),
        ('{"type": "Polygon", "coordinates": [[["a", 2], [3, 4], [1, 1], ["a", 2]]]}', r"is not valid GeoJSON"),
        (
            '{"type": "Polygon", "coordinates": [[[5e5, 2], [5e5, 4], [1, 1], [5e5, 2]]]}',
            r"is not in longitude and latitude: got 500000, 2, expected degrees.*ogr2ogr -t_srs EPSG:4326",
        ),
    ],
)
def test_areas_that_cannot_be_are_refused(tmp_path, content, message):
    path = tmp_path / "a.geojson"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_aoi(path)


def test_an_area_with_a_byte_order_mark_is_read(tmp_path):
    path = geojson(tmp_path / "a.geojson", [(0, 0), (30, 0), (30, 30), (0, 30)])
    plain = read_aoi(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_aoi(path) == plain


def test_an_area_across_the_antimeridian(tmp_path, fake_engine):
    transform = Affine(0.001, 0, 179.94, 0, -0.001, 10)
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, OBJECTS), crs="EPSG:4326", transform=transform)
    east = [[-180, 9.83], [-179.9, 9.83], [-179.9, 10], [-180, 10], [-180, 9.83]]  # columns 60 to 160
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [east]}))
    result = deploy.detect(write_bundle(tmp_path / "b").path, scene, aoi=read_aoi(path))
    assert as_set(result.detections) == {OBJECTS[2]}


def crosses(edges, low, high):
    """Return which edges [n, 2, 2] have a part in a rectangle, by the algorithm of Liang and Barsky."""
    start, step = edges[:, 0], edges[:, 1] - edges[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (low - start) / step, (high - start) / step
    parallel = step == 0.0
    within = (start >= low) & (start <= high)
    enter = np.where(parallel, np.where(within, -np.inf, np.inf), np.minimum(one, other))
    leave = np.where(parallel, np.where(within, np.inf, -np.inf), np.maximum(one, other))
    return np.maximum(enter.max(axis=1), 0.0) <= np.minimum(leave.min(axis=1), 1.0)


def inside(points, edges):
    """Return which points [n, 2] are inside a polygon, by the even-odd rule."""
    result = np.zeros(len(points), bool)
    x, y = points.T
    for (x1, y1), (x2, y2) in edges:
        if y1 != y2:
            straddles = (y1 > y) != (y2 > y)
            result ^= straddles & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return result


point = st.tuples(st.integers(-20, 120), st.integers(-20, 120))


@given(st.lists(point, min_size=3, max_size=9, unique=True), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_tiles_and_objects_inside_are_those_of_the_slow_version(ring, seed):
    assume(shapely.Polygon(ring).is_valid)
    closed = np.array([*ring, ring[0]], float) + np.array([0.37, 0.41])  # no vertex at the edge of a tile
    edges = np.stack([closed[:-1], closed[1:]], axis=1)
    grid = TileGrid((100, 110), (32, 32), 10)
    expected = []
    for window in grid:
        low, high = np.array([window.left, window.top]), np.array([window.right, window.bottom])
        expected.append(crosses(edges, low, high).any() or inside((low + high)[None] / 2, edges)[0])
    georeference = Georeference(CRS.from_epsg(4326), Affine(1e-3, 0, 10, 0, -1e-3, 50))
    polygon = tuple(map(tuple, georeference.to_lonlat(closed).tolist()))
    area = AreaOfInterest(source="a.geojson", polygons=((polygon,),))
    stretch = ContrastStretch("as is", (0.0,), (255.0,))
    scene = SceneInfo("s.tif", "", "GTiff", (100, 110), "uint8", (1,), (None,), stretch, georeference)
    if not any(expected):
        with pytest.raises(SceneError, match="is outside"):
            aoi_mask_of(area, scene, grid)
        return
    mask = aoi_mask_of(area, scene, grid)
    tiles = list(grid)
    touching = [one for one, is_touching in zip(tiles, expected, strict=True) if is_touching]
    around = [any(are_neighbors(one, other, grid) for other in touching) for one in tiles]
    np.testing.assert_array_equal(mask.tiles, around)
    centers = np.random.default_rng(seed).uniform(-30, 130, (40, 2)).astype(np.float32)
    boxes = np.concatenate([centers, centers], axis=1)
    np.testing.assert_array_equal(mask.contains(boxes), inside(centers.astype(np.float64), edges))


@pytest.mark.parametrize(
    ("crs", "transform"), [("EPSG:32633", TURNED), ("EPSG:4326", Affine(1e-3, 0, 10, 0, -1e-3, 50))]
)
def test_pixels_to_degrees_and_back(crs, transform):
    georeference = Georeference(CRS.from_user_input(crs), transform)
    points = np.random.default_rng(0).uniform(0, 500, (30, 2))
    back = georeference.from_lonlat(georeference.to_lonlat(points), (500, 500))
    np.testing.assert_allclose(back, points, atol=1e-4)


def test_a_scene_without_a_path_to_wgs84_has_no_area(tmp_path):
    local = 'LOCAL_CS["drawing",UNIT["metre",1]]'
    scene = write_tif(tmp_path / "s.tif", sea(170, 200, []), crs=local, transform=Affine(1, 0, 100, 0, -1, 200))
    area = read_aoi(geojson(tmp_path / "a.geojson", [(0, 0), (30, 0), (30, 30), (0, 30)]))
    with pytest.raises(SceneError, match="'drawing' cannot be converted to WGS84"):
        deploy.detect(write_bundle(tmp_path / "b").path, scene, aoi=area)
