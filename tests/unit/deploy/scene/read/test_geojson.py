import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from shapely.geometry import shape

from deploy.scene.read.geojson import GeoJsonExtent, geojson_geometry
from deploy.scene.read.georeference import Georeference


def bbox_of(geometries):
    extent = GeoJsonExtent()
    extent.add(geometries)
    return extent.bbox()


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
