"""Distances on the ellipsoid to the nearest segment. Oracle: geodesics of pyproj."""

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

from deploy.scene.read.georeference import Georeference
from deploy.scene.read.ground_distance import GroundSegments

GEOD = pyproj.Geod(ellps="WGS84")
DEGREES = Georeference(CRS.from_epsg(4326), Affine.identity())


@given(
    longitude=st.floats(-180.0, 180.0),
    latitude=st.floats(-90.0, 90.0),
    azimuth=st.floats(0.0, 360.0),
    distance=st.floats(0.0, 1e6),
)
def test_the_distance_to_a_point_is_that_of_a_geodesic(longitude, latitude, azimuth, distance):
    point = np.array([GEOD.fwd(longitude, latitude, azimuth, distance)[:2]])
    nearest = GroundSegments(point, point, DEGREES).nearest(np.array([[longitude, latitude]]))
    assert nearest.index.tolist() == [0]
    assert nearest.distance_m[0] == pytest.approx(distance, rel=2e-5, abs=1e-3)


@pytest.mark.parametrize("latitude", [-89.0, -50.0, 0.0, 80.0])
@pytest.mark.parametrize("span", [0.01, 1.0, 20.0])
def test_the_nearest_of_many_points_is_that_of_a_loop(span, latitude):
    rng = np.random.default_rng(0)
    points, places = (rng.uniform(-span, span, (count, 2)) + np.array([179.0, latitude]) for count in (50, 40))
    points[:, 1], places[:, 1] = points[:, 1].clip(-90.0, 90.0), places[:, 1].clip(-90.0, 90.0)
    nearest = GroundSegments(points, points, DEGREES).nearest(places)
    pairs = [np.repeat(places, len(points), axis=0).T, np.tile(points, (len(places), 1)).T]
    distances = GEOD.inv(*pairs[0], *pairs[1])[2].reshape(len(places), -1)
    np.testing.assert_allclose(nearest.distance_m, distances.min(axis=1), rtol=2e-3, atol=1e-3)
    own = distances[np.arange(len(places)), nearest.index]
    np.testing.assert_allclose(nearest.distance_m, own, rtol=1e-4, atol=1e-3)


def test_the_row_of_a_divided_segment_is_its_own():
    starts, ends = np.array([[0.0, 0.0], [0.0, 10.0]]), np.array([[30.0, 0.0], [30.0, 10.0]])
    nearest = GroundSegments(starts, ends, DEGREES).nearest(np.array([[15.0, 1.0], [29.0, 9.0], [15.0, 6.0]]))
    assert nearest.index.tolist() == [0, 1, 1]
    assert nearest.distance_m[0] == pytest.approx(GEOD.inv(15, 1, 15, 0)[2], abs=0.1)


def test_coordinates_off_the_earth_are_refused():
    polar = Georeference(CRS.from_epsg(3995), Affine.identity())
    far = np.array([[1e12, 0.0]])
    with pytest.raises(ValueError, match="no place on Earth"):
        GroundSegments(far, far, polar)
