"""Laws of georeferences: pixel -> map -> longitude and latitude -> pixel. Oracle: pyproj."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from shapely.geometry import shape

from deploy.scene.read.geojson import box_geometries
from deploy.scene.read.georeference import WGS84, Georeference, georeference_of

GEOSTATIONARY = "+proj=geos +h=35785831 +lon_0=0 +sweep=y +units=m"
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433"
SYSTEMS = {
    "UTM": ("EPSG:32633", (500_000, 4_500_000), 2.0),
    "UTM south, across 180 degrees": ("EPSG:32760", (816_000, 8_100_000), 10.0),
    "polar stereographic": ("EPSG:3413", (-2e5, 2e5), 1000.0),
    "south pole at a corner": ("EPSG:3031", (0, 0), 30.0),
    "Lambert": ("EPSG:3035", (4e6, 3e6), 10.0),
    "feet": ("EPSG:2263", (980_000, 200_000), 2.0),
    "axes north, east": ("EPSG:2193", (1_600_000, 5_400_000), 10.0),
    "axes south, west": ("EPSG:2048", (50_000, -3_700_000), 2.0),
    "with a datum shift": ("EPSG:27700", (400_000, 300_000), 2.0),
    "with heights": ("EPSG:32633+5773", (500_000, 4_500_000), 2.0),
    "Mercator beyond 180 degrees": ("EPSG:3857", (20_017_508, -2e6), 100.0),
    "Mercator before -180 degrees": ("EPSG:3857", (-20_057_508, -2e6), 100.0),
    "equal area beyond 180 degrees": ("EPSG:6933", (17_167_530, 1e6), 1000.0),
    "sinusoidal without an authority": ("+proj=sinu +R=6371007.181", (1e6, 5e6), 500.0),
    "geostationary": (GEOSTATIONARY, (-6e5, 3e6), 3000.0),
    "geostationary limb": (GEOSTATIONARY, (5.2e6, 5e5), 2000.0),
    "degrees": ("EPSG:4326", (10, 60), 1e-4),
    "degrees beyond 180": ("EPSG:4326", (179.99, -17), 1e-4),
    "degrees before -180": ("EPSG:4258", (-180.01, 60), 1e-4),
    "degrees from 0 to 360": ("EPSG:4326", (170, 70), 0.45),
    "degrees up to the pole": ("EPSG:4326", (100, 90), 1e-3),
    "grads": ("EPSG:4807", (1, 50), 1e-4),
    "rotated pole": (ROTATED_POLE, (-5, 5), 0.01),
}
"""Name -> coordinate system, map coordinates of the upper left corner, side of a pixel."""
SIZE = (300, 400)


def place(name, turn=0.0, shear=0.0, flip=False):
    system, (x, y), side = SYSTEMS[name]
    steps = Affine.scale(side, side if flip else -side) @ Affine.rotation(turn) @ Affine.shear(shear)
    return Georeference(CRS.from_user_input(system), Affine.translation(x, y) @ steps)


@pytest.mark.parametrize("name", SYSTEMS)
def test_pixels_come_back_and_pyproj_agrees(name):
    georeference = place(name)
    points = np.random.default_rng(0).uniform((0, 0), SIZE[::-1], (300, 2))
    lonlat = georeference.to_lonlat(points)
    located = np.isfinite(lonlat).all(axis=1)
    assert georeference.lonlat_problem(SIZE) is None
    assert located.all() == (name != "geostationary limb")
    assert located.any()
    assert np.abs(lonlat[located, 0]).max() <= 180
    np.testing.assert_allclose(georeference.from_lonlat(lonlat[located], SIZE), points[located], atol=0.01)
    oracle = pyproj.Transformer.from_crs(pyproj.CRS(georeference.crs.to_wkt()), 4326, always_xy=True)
    expected = np.column_stack(oracle.transform(*georeference.to_map(points).T))
    np.testing.assert_array_equal(np.isfinite(expected).all(axis=1), located)
    differences = (lonlat - expected)[located]
    differences[:, 0] = (differences[:, 0] + 180) % 360 - 180
    np.testing.assert_allclose(differences, 0, atol=1e-7)


@given(
    st.sampled_from(sorted(set(SYSTEMS) - {"degrees up to the pole", "degrees from 0 to 360"})),
    st.floats(-180, 180),
    st.floats(-40, 40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_turned_and_sheared_scenes_come_back(name, turn, shear, flip, seed):
    georeference = place(name, turn, shear, flip)
    points = np.random.default_rng(seed).uniform((0, 0), SIZE[::-1], (20, 2))
    lonlat = georeference.to_lonlat(points)
    located = np.isfinite(lonlat).all(axis=1)
    np.testing.assert_allclose(georeference.from_lonlat(lonlat[located], SIZE), points[located], atol=0.01)


@pytest.mark.parametrize("name", SYSTEMS)
def test_geometries_of_boxes_contain_what_the_boxes_contain(name):
    georeference = place(name)
    rng = np.random.default_rng(1)
    low = rng.uniform((0, 0), (380, 280), (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 20, (40, 2))], axis=1)
    boxes[0] = [190, 190, 215, 215]  # around the pole of the polar scene
    for box, geometry in zip(boxes, box_geometries(georeference, boxes), strict=True):
        if geometry is None:
            assert name == "geostationary limb"
            continue
        drawn = shape(geometry)
        assert drawn.is_valid
        assert drawn.bounds[0] >= -180
        assert drawn.bounds[2] <= 180
        at = rng.uniform(box[:2] - 10, box[2:] + 10, (60, 2))
        distance = np.concatenate([at - box[:2], box[2:] - at], axis=1).min(axis=1)
        lonlat = georeference.to_lonlat(at)
        clear = (np.abs(distance) > 0.3) & np.isfinite(lonlat).all(axis=1)
        found = shapely.intersects_xy(drawn, lonlat[clear])
        np.testing.assert_array_equal(found, distance[clear] > 0)


class Dataset:
    """The georeference of a rasterio dataset."""

    def __init__(self, *, crs=None, transform=None, gcps=(), gcps_crs=None, rpcs=None):
        self.crs, self.transform, self.rpcs = crs, transform or Affine.identity(), rpcs
        self.gcps = (list(gcps), gcps_crs)

    def tags(self, *, ns):
        """Return no tags."""
        assert ns == "GEOLOCATION"
        return {}


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 2**32 - 1))
def test_scenes_placed_by_control_points_lie_where_the_points_are(longitude, latitude, turn, seed):
    ground = CRS.from_proj4(f"+proj=laea +lon_0={longitude} +lat_0={latitude} +datum=WGS84")
    true = Georeference(ground, Affine.rotation(turn) @ Affine.scale(50, -50) @ Affine.translation(-200, -150))
    pixels = np.stack(np.meshgrid(np.linspace(0, 400, 6), np.linspace(0, 300, 5)), axis=-1).reshape(-1, 2)
    places = true.to_lonlat(pixels)
    points = [GroundControlPoint(row, col, x, y) for (col, row), (x, y) in zip(pixels, places, strict=True)]
    georeference = georeference_of(Dataset(gcps=points, gcps_crs=WGS84))
    assert isinstance(georeference, Georeference)
    at = np.random.default_rng(seed).uniform((0, 0), (400, 300), (30, 2))
    found = georeference.to_lonlat(at)
    back = true.from_lonlat(found, SIZE)
    np.testing.assert_allclose(back, at, atol=2.0 if abs(latitude) > 85 else 0.3)
    np.testing.assert_allclose(georeference.from_lonlat(found, SIZE), at, atol=0.01)
