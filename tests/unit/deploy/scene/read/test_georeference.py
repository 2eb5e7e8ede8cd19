import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from deploy.scene.read.georeference import WGS84, Georeference, georeference_of, map_polygons, map_rings

UTM = CRS.from_epsg(32633)
MOON = CRS.from_wkt(
    'GEOGCS["Moon",DATUM["D_Moon",SPHEROID["Moon",1737400,0]],PRIMEM["Reference_Meridian",0],'
    'UNIT["degree",0.0174532925199433]]'
)
LOCAL = CRS.from_wkt('LOCAL_CS["drawing",UNIT["metre",1]]')
ROTATED = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 4_500_000)


@pytest.mark.parametrize("transform", [Affine(2, 0, 5e5, 0, -2, 4.5e6), ROTATED, Affine(2, 0.3, 5e5, 0.1, 2, 4.5e6)])
def test_points_go_where_rasterio_says(transform):
    georeference = Georeference(UTM, transform)
    points = np.random.default_rng(0).uniform(0, 1000, (20, 2))
    x, y = rasterio.transform.xy(transform, points[:, 1], points[:, 0], offset="ul")
    np.testing.assert_allclose(georeference.to_map(points), np.stack([x, y], axis=1), atol=1e-6)
    lon, lat = rasterio.warp.transform(UTM, WGS84, list(x), list(y))
    np.testing.assert_allclose(georeference.to_lonlat(points), np.stack([lon, lat], axis=1), atol=1e-9)
    assert georeference.to_map(np.zeros((0, 2))).shape == (0, 2)
    assert georeference.to_lonlat(np.zeros((0, 2))).shape == (0, 2)


@pytest.mark.parametrize("transform", [Affine(2, 0, 5e5, 0, -2, 4.5e6), ROTATED, Affine(2, 0, 5e5, 0, 2, 4.5e6)])
def test_rings_are_closed_and_anticlockwise_also_where_rows_go_north(transform):
    rings = map_rings(Georeference(UTM, transform), np.array([[10, 20, 40, 30], [0, 0, 1, 1]], np.float32))
    for ring in rings:
        assert ring[0].tolist() == ring[-1].tolist()
        assert shapely.LinearRing(ring).is_ccw
    assert shapely.Polygon(rings[0]).area == pytest.approx(30 * 10 * 4)


def test_axes_are_longitude_then_latitude_whatever_the_authority_says():
    georeference = Georeference(CRS.from_epsg(4258), Affine(0.001, 0, 10, 0, -0.001, 50))
    np.testing.assert_allclose(georeference.to_lonlat(np.array([[100.0, 200.0]])), [[10.1, 49.8]], atol=1e-6)


def test_ground_sample_distance_is_in_meters_in_any_system():
    assert Georeference(UTM, Affine(2, 0, 5e5, 0, -2, 4.5e6)).gsd_m((100, 100)) == pytest.approx(2, rel=1e-3)
    sheared = Georeference(UTM, Affine(2, 2, 5e5, 0, -2, 4.5e6))  # pixels of 4 square meters
    assert sheared.gsd_m((100, 100)) == pytest.approx(2, rel=1e-3)
    degrees = Georeference(WGS84, Affine(1e-4, 0, 10, 0, -1e-4, 60))
    assert degrees.gsd_m((10, 10)) == pytest.approx(11.12 * np.sqrt(0.5), rel=5e-3)


POLAR, MERCATOR = CRS.from_epsg(3413), CRS.from_epsg(3857)
GEOID = pyproj.Geod(ellps="WGS84")


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, Affine(2, 0, 5e5, 0, -2, 4.5e6)),
        (UTM, ROTATED),
        (UTM, Affine(2, 0.3, 5e5, 0.1, 2, 4.5e6)),
        (CRS.from_epsg(2193), Affine(10, 0, 1.6e6, 0, -10, 5.4e6)),  # northing comes first in the authority's axes
        (WGS84, Affine(1e-4, 0, 10, 0, -1e-4, 60)),
        (WGS84, Affine(1e-3, 0, 179.9, 0, -1e-3, -60)),
        (MERCATOR, Affine(10, 0, 20_037_508 - 2_000, 0, -10, 8.4e6)),
        (POLAR, Affine(100, 0, -5e4, 0, -100, 5e4)),
        (POLAR, Affine(2000, 0, -1e6, 0, -2000, 1e6)),
    ],
)
def test_sides_are_geodesics_by_pyproj(crs, transform):
    random = np.random.default_rng(0)
    corner, size = random.uniform(0, 950, (50, 2)), random.uniform(1, 50, (50, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    x1, y1, x2, y2 = boxes.T
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    to_lonlat = pyproj.Transformer.from_crs(crs.to_wkt(), "EPSG:4326", always_xy=True).transform
    left, right, top, bottom = (to_lonlat(*(transform @ point)) for point in [(x1, y), (x2, y), (x, y1), (x, y2)])
    expected = np.stack([GEOID.inv(*left, *right)[2], GEOID.inv(*top, *bottom)[2]], axis=1)
    np.testing.assert_allclose(Georeference(crs, transform).sides_m(boxes), expected, rtol=1e-6, atol=1e-6)


def test_sides_by_control_points_and_off_the_earth():
    points = tuple(
        GroundControlPoint(row=r, col=c, x=10 + c / 1e4, y=50 - r / 1e4) for r in (0, 500, 1000) for c in (0, 500, 1000)
    )
    boxes = np.array([[100, 200, 160, 220], [900, 0, 910, 90]], np.float32)
    (x1, y1, x2, y2), lon, lat = boxes.T.astype(float), lambda x: 10 + x / 1e4, lambda y: 50 - y / 1e4
    across = GEOID.inv(lon(x1), lat((y1 + y2) / 2), lon(x2), lat((y1 + y2) / 2))[2]
    down = GEOID.inv(lon((x1 + x2) / 2), lat(y1), lon((x1 + x2) / 2), lat(y2))[2]
    found = Georeference(WGS84, None, points).sides_m(boxes)
    np.testing.assert_allclose(found, np.stack([across, down], axis=1), rtol=1e-6)
    geostationary = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m")
    disk = Georeference(geostationary, Affine(2000, 0, 5.2e6, 0, -2000, 1e5))  # the Earth ends at column 117
    found = disk.sides_m(np.array([[0, 0, 9, 9], [110, 0, 130, 9], [190, 0, 199, 9]], np.float32))
    assert np.isnan(found).tolist() == [[False] * 2, [True] * 2, [True] * 2]
    assert disk.sides_m(np.zeros((0, 4), np.float32)).shape == (0, 2)


def test_a_system_without_a_path_to_wgs84_says_so():
    assert Georeference(UTM, ROTATED).lonlat_problem((10, 10)) is None
    for crs in (MOON, LOCAL):
        georeference = Georeference(crs, Affine(1, 0, 0, 0, -1, 0))
        assert georeference.lonlat_problem((10, 10))
        assert georeference.gsd_m((10, 10)) is None


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_geolocation_arrays_are_named(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=4, width=5, count=1, dtype="uint8") as dataset:
        dataset.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", X_BAND="1", Y_DATASET="lat.tif", Y_BAND="1")
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert "gdalwarp -geoloc" in str(georeference_of(dataset))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32601"])
def test_control_points_on_both_sides_of_the_antimeridian(tmp_path, crs):
    """In degrees and in a Mercator projection their x differs by a turn; not in UTM."""
    pixels = np.stack(np.meshgrid(np.linspace(0, 400, 5), np.linspace(0, 300, 5)), axis=-1).reshape(-1, 2)
    lonlat = np.array([179.99, 45.0]) + pixels * [1e-4, -1e-4]
    lonlat[:, 0] = (lonlat[:, 0] + 180) % 360 - 180
    x, y = rasterio.warp.transform(WGS84, CRS.from_string(crs), *lonlat.T.tolist())
    points = [GroundControlPoint(row, col, *place) for (col, row), *place in zip(pixels.tolist(), x, y, strict=True)]
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=300, width=400, count=1, dtype="uint8"
    ) as dataset:
        dataset.gcps = (points, CRS.from_string(crs))
    with rasterio.open(tmp_path / "a.tif") as dataset:
        georeference = georeference_of(dataset)
    assert georeference.gsd_m((300, 400)) == pytest.approx(9.35, abs=0.02)
    np.testing.assert_allclose(georeference.to_lonlat(pixels), lonlat, atol=1e-7)
    between = georeference.to_lonlat(np.array([[137.0, 151.0]]))[0]
    np.testing.assert_allclose(between, [-179.9963, 44.9849], atol=1e-5)


def test_a_box_without_a_finite_place_has_no_polygon(monkeypatch):
    place, boxes = Georeference(UTM, ROTATED), np.array([[10, 20, 40, 30], [0, 0, 1, 1]], np.float32)
    expected = map_rings(place, boxes)
    points = place.to_map(np.array([[10, 20]]))
    to_map = Georeference.to_map

    def diverging(self, pixels):
        found = to_map(self, pixels)
        return np.where((found == points).all(axis=1, keepdims=True), np.inf, found)

    monkeypatch.setattr(Georeference, "to_map", diverging)
    first, second = map_polygons(place, boxes)
    assert first is None
    assert shapely.equals(second, shapely.polygons(expected[1]))
