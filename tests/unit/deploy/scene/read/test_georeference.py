import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import shape

from deploy.scene.read.georeference import WGS84, GeoJsonExtent, Georeference, geojson_geometry, map_rings

UTM = CRS.from_epsg(32633)
MOON = CRS.from_wkt(
    'GEOGCS["Moon",DATUM["D_Moon",SPHEROID["Moon",1737400,0]],PRIMEM["Reference_Meridian",0],'
    'UNIT["degree",0.0174532925199433]]'
)
LOCAL = CRS.from_wkt('LOCAL_CS["drawing",UNIT["metre",1]]')
ROTATED = Affine(1.6, 1.2, 500_000, 1.2, -1.6, 4_500_000)


def bbox_of(geometries):
    extent = GeoJsonExtent()
    extent.add(geometries)
    return extent.bbox()


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
    assert Georeference(UTM, Affine(2, 0, 5e5, 0, -2, 4.5e6)).gsd_m((100, 100)) == pytest.approx(2, rel=5e-3)
    degrees = Georeference(WGS84, Affine(1e-4, 0, 10, 0, -1e-4, 60))
    assert degrees.gsd_m((10, 10)) == pytest.approx(11.12 * np.sqrt(0.5), rel=5e-3)


def test_a_system_without_a_path_to_wgs84_says_so():
    assert Georeference(UTM, ROTATED).lonlat_problem((10, 10)) is None
    for crs in (MOON, LOCAL):
        georeference = Georeference(crs, Affine(1, 0, 0, 0, -1, 0))
        assert georeference.lonlat_problem((10, 10))
        assert georeference.gsd_m((10, 10)) is None


def ring(*points):
    return np.array(points, float)


def check(geometry):
    drawn = shape(geometry)
    assert drawn.is_valid
    for polygon in getattr(drawn, "geoms", [drawn]):
        assert polygon.exterior.is_ccw
        assert polygon.exterior.is_closed
        west, south, east, north = polygon.bounds
        assert west >= -180
        assert east <= 180
        assert south >= -90
        assert north <= 90
    return drawn


def test_a_plain_ring_is_a_polygon_of_seven_decimals():
    geometry = geojson_geometry(ring((10.123456789, 50), (10.2, 50), (10.2, 50.1), (10.1, 50.1)))
    assert geometry["type"] == "Polygon"
    assert geometry["coordinates"][0][0] == [10.1234568, 50.0]
    check(geometry)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("shift", [0, 360])
def test_a_ring_across_the_antimeridian_is_cut_in_two(order, shift):
    points = ring((179.9, 0), (-179.8 + shift, 0), (-179.8 + shift, 1), (179.9, 1))[::order]
    geometry = geojson_geometry(points)
    assert geometry["type"] == "MultiPolygon"
    drawn = check(geometry)
    assert drawn.area == pytest.approx(0.3)
    assert bbox_of([geometry]) == pytest.approx([179.9, 0, -179.8, 1])


def test_a_ring_that_only_touches_the_antimeridian_stays_one():
    geometry = geojson_geometry(ring((179.5, 0), (180, 0), (180, 1), (179.5, 1)))
    assert geometry["type"] == "Polygon"
    assert check(geometry).area == pytest.approx(0.5)


@pytest.mark.parametrize("pole", [90, -90])
def test_a_ring_around_a_pole_reaches_it(pole):
    polar = Georeference(CRS.from_epsg(3413 if pole > 0 else 3031), Affine(1000, 0, -2e5, 0, -1000, 2e5))
    corners = np.array([[150, 150], [150, 250], [250, 250], [250, 150]])
    drawn = check(geojson_geometry(polar.to_lonlat(corners)))
    for longitude in range(-175, 180, 10):
        assert drawn.covers(shapely.Point(longitude, np.sign(pole) * 89.7))
    assert not drawn.intersects(shapely.Point(0, np.sign(pole) * 89.2))


def test_a_corner_that_is_not_on_earth_gives_an_unlocated_feature():
    assert geojson_geometry(ring((1, 1), (np.inf, 1), (2, 2))) is None


def test_bounding_boxes():
    one = geojson_geometry(ring((1, 1), (2, 1), (2, 2), (1, 2)))
    far = geojson_geometry(ring((170, -5), (171, -5), (171, -4), (170, -4)))
    other = geojson_geometry(ring((-178, -5), (-177, -5), (-177, -4), (-178, -4)))
    assert bbox_of([]) is None
    assert bbox_of([one]) == [1, 1, 2, 2]
    assert bbox_of([one, far]) == [1, -5, 171, 2]
    assert bbox_of([far, other]) == [170, -5, -177, -4]
