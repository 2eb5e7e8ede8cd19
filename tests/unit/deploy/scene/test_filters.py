"""Filters of detections by vector files. Oracles: geopandas, pyproj and slow loops."""

from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely

from deploy.scene.filters import read_filters
from ifkd.core.errors import UsageError

GEOD = pyproj.Geod(ellps="WGS84")
SQUARE = shapely.box(14.0, 40.0, 14.2, 40.1)


def write(path, geometries, *, crs="EPSG:4326", **columns):
    """Write geometries with columns in the format of the suffix, and return the path."""
    geopandas.GeoDataFrame(columns, geometry=list(geometries), crs=crs).to_file(path)
    return path


def places(count, *, west=13.9, south=39.9, east=14.4, north=40.3, seed=0):
    return np.random.default_rng(seed).uniform([west, south], [east, north], (count, 2))


def star(center, radius, *, points=60, seed=1):
    """Return a polygon with long spikes."""
    angle = np.linspace(0.0, 2 * np.pi, points, endpoint=False)
    reach = radius * np.random.default_rng(seed).uniform(0.3, 1.0, points)
    return shapely.Polygon(np.stack([center[0] + reach * np.cos(angle), center[1] + reach * np.sin(angle)], axis=1))


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3035", "EPSG:4258"])
def test_centers_in_polygons_are_dropped_in_every_format_and_coordinate_system(tmp_path, suffix, crs):
    land = geopandas.GeoSeries([star((14.1, 40.05), 0.1), star((14.25, 40.2), 0.08)], crs="EPSG:4326").to_crs(crs)
    lonlat = places(500)
    filters = read_filters(exclude=[write(tmp_path / f"land.{suffix}", land, crs=crs)])
    rows = filters.apply(lonlat)
    points = geopandas.GeoSeries(shapely.points(lonlat), crs="EPSG:4326").to_crs(crs)
    inside = points.within(land.union_all()).to_numpy()
    assert 20 < inside.sum() < 200
    np.testing.assert_array_equal(rows.keep, ~inside)
    assert rows.tags == {}
    (record,) = rows.record.exclude
    assert (record.source, record.features, record.detections) == (f"land.{suffix}", 2, inside.sum())


def test_tagged_detections_are_kept(tmp_path):
    lonlat = places(100)
    path = write(tmp_path / "land.geojson", [SQUARE])
    dropped, tagged = (read_filters(exclude=[path], tag=tag).apply(lonlat) for tag in (False, True))
    assert tagged.keep.all()
    np.testing.assert_array_equal(tagged.tags["excluded"], ~dropped.keep)
    assert (dropped.record.excluded, tagged.record.excluded) == ("dropped", "tagged")
    assert dropped.record.exclude == tagged.record.exclude


def test_each_file_counts_the_detections_that_those_before_it_do_not_contain(tmp_path):
    first = write(tmp_path / "a.geojson", [shapely.box(0, 0, 2, 2)])
    second = write(tmp_path / "b.geojson", [shapely.box(1, 0, 3, 2)])
    lonlat = np.array([[0.5, 1], [1.5, 1], [2.5, 1], [3.5, 1], [np.nan, np.nan]])
    rows = read_filters(exclude=[first, second]).apply(lonlat)
    assert [one.detections for one in rows.record.exclude] == [2, 1]
    assert rows.record.detections == 5
    assert rows.keep.tolist() == [False, False, False, True, True]
    assert rows.record.summary() == "Filters, of 5 detections: 2 dropped in a.geojson, 1 dropped in b.geojson"


def test_a_border_belongs_to_its_area_also_between_two_areas(tmp_path):
    path = write(tmp_path / "a.geojson", [shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1)])
    keep = read_filters(exclude=[path]).apply(np.array([[1.0, 0.5], [0.0, 0.0], [2.1, 0.5]])).keep
    assert keep.tolist() == [False, False, True]


def test_polygons_that_cross_themselves_are_repaired_and_reported(tmp_path):
    bowtie = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    filters = read_filters(exclude=[write(tmp_path / "a.gpkg", [bowtie, shapely.box(5, 5, 6, 6)])])
    keep = filters.apply(np.array([[0.2, 1.0], [1.8, 1.0], [1.0, 1.8], [5.5, 5.5]])).keep
    assert keep.tolist() == [False, False, True, False]
    assert filters.remarks() == ["a.gpkg, 2 features: 1 repaired because they crossed themselves."]


def test_areas_across_the_antimeridian_and_around_a_pole(tmp_path):
    across = shapely.Polygon([(170, -20), (-170, -20), (-170, -10), (170, -10)])
    counted = shapely.box(175, 10, 190, 20)
    cap = shapely.Polygon([(-120, -80), (-60, -81), (0, -80), (60, -79), (120, -80)])  # crosses itself in the plane
    lonlat = np.array(
        [[175, -15], [-175, -15], [0, -15], [180, -15], [178, 15], [-175, 15], [-165, 15], [60, -89], [60, -70]]
    ).astype(float)
    filters = read_filters(exclude=[write(tmp_path / "a.gpkg", [across, counted, cap])])
    keep = filters.apply(lonlat).keep
    assert filters.remarks() == []
    assert keep.tolist() == [False, False, True, False, False, False, True, False, True]


def test_a_polygon_in_a_polar_projection_contains_the_pole(tmp_path):
    cap = shapely.Point(0, 0).buffer(500_000)
    keep = (
        read_filters(exclude=[write(tmp_path / "a.gpkg", [cap], crs="EPSG:3995")])
        .apply(np.array([[10.0, 89.9], [-170.0, 86.0], [10.0, 80.0], [0.0, -90.0]]))
        .keep
    )
    assert keep.tolist() == [False, False, True, True]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633"])
def test_near_is_the_nearest_point_within_the_geodesic_distance(tmp_path, crs):
    known, lonlat = places(40, seed=3), places(300, seed=4)
    points = geopandas.GeoSeries(shapely.points(known), crs="EPSG:4326").to_crs(crs)
    names = [f"rig {row}" for row in range(40)]
    filters = read_filters(near=write(tmp_path / "p.gpkg", points, crs=crs, name=names), within_m=2_000.0)
    rows = filters.apply(lonlat)
    distances = np.array([GEOD.inv(*(np.full(40, value) for value in place), *known.T)[2] for place in lonlat])
    near = distances.min(axis=1) <= 2_000
    assert 10 < near.sum() < 290
    expected = [names[row] if is_near else None for row, is_near in zip(distances.argmin(axis=1), near, strict=True)]
    assert rows.tags["near"].tolist() == expected
    np.testing.assert_allclose(rows.tags["near_m"][near], distances.min(axis=1)[near], atol=0.051)
    assert np.isnan(rows.tags["near_m"][~near]).all()
    assert rows.keep.all()
    assert (rows.record.near.within_m, rows.record.near.detections) == (2_000, near.sum())


def test_points_without_a_name_have_their_id_or_number(tmp_path):
    path = write(
        tmp_path / "p.gpkg", shapely.points([[1, 1], [2, 2], [3, 3]]), name=["A", None, ""], id=[None, 7.0, None]
    )
    tags = read_filters(near=path, within_m=100.0).apply(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])).tags
    assert tags["near"].tolist() == ["A", "7", "3"]  # GeoPackage counts from 1
    assert tags["near_m"].tolist() == [0.0, 0.0, 0.0]


def test_several_points_of_one_feature_have_its_name(tmp_path):
    path = write(
        tmp_path / "p.gpkg", [shapely.MultiPoint([(1, 1), (2, 2)]), shapely.Point(3, 3)], name=["farm", "mast"]
    )
    tags = read_filters(near=path, within_m=100.0).apply(np.array([[2.0, 2.0], [3.0, 3.0]])).tags
    assert tags["near"].tolist() == ["farm", "mast"]


def dense(line, *, step=0.0005):
    return shapely.get_coordinates(shapely.segmentize(line, step))


@pytest.mark.parametrize("as_line", [False, True])
@pytest.mark.parametrize("latitude", [0.0, 40.0, 75.0])
def test_coast_distance_is_that_to_the_nearest_point_of_a_dense_coastline(tmp_path, latitude, as_line):
    island = star((14.1, latitude + 0.05), 0.1, points=12)
    coast = island.exterior if as_line else island
    lonlat = places(40, south=latitude - 0.3, north=latitude + 0.4)
    rows = read_filters(coast=write(tmp_path / "coast.geojson", [coast])).apply(lonlat)
    points = dense(island.exterior, step=0.0002)
    expected = [GEOD.inv(*(np.full(len(points), value) for value in place), *points.T)[2].min() for place in lonlat]
    np.testing.assert_allclose(rows.tags["coast_m"], expected, rtol=1e-3, atol=2.0)
    assert rows.keep.all()


def test_a_long_edge_is_straight_in_the_coordinates_of_its_file(tmp_path):
    lonlat = np.array([[10.0, 59.0]])
    parallel, chord = shapely.LineString([(0, 60), (20, 60)]), shapely.LineString([(0, 60), (20, 60)])
    in_degrees = read_filters(coast=write(tmp_path / "a.gpkg", [parallel])).apply(lonlat).tags["coast_m"][0]
    assert in_degrees == pytest.approx(GEOD.inv(10, 59, 10, 60)[2], abs=1.0)
    ends = geopandas.GeoSeries(shapely.points([(0, 60), (20, 60)]), crs="EPSG:4326").to_crs("EPSG:3035")
    chord = shapely.LineString(ends.tolist())
    path = write(tmp_path / "b.gpkg", [chord], crs="EPSG:3035")
    in_meters = read_filters(coast=path).apply(lonlat).tags["coast_m"][0]
    points = geopandas.GeoSeries(shapely.points(dense(chord, step=100)), crs="EPSG:3035").to_crs("EPSG:4326")
    expected = GEOD.inv(*(np.full(len(points), value) for value in lonlat[0]), points.x, points.y)[2].min()
    assert in_meters == pytest.approx(expected, abs=1.0)
    assert in_meters > in_degrees + 10_000


def test_the_cut_at_the_antimeridian_is_no_coast_and_the_other_side_is_near(tmp_path):
    halves = [shapely.box(178, -17, 180, -16), shapely.box(-180, -17, -179, -16)]
    lonlat = np.array([[180.0, -16.5], [-178.9, -16.5], [177.9, -16.5]])
    tags = read_filters(coast=write(tmp_path / "a.gpkg", halves)).apply(lonlat).tags
    expected = [GEOD.inv(180, -16.5, 180, -16)[2], *(GEOD.inv(-178.9, -16.5, -179, -16.5)[2],) * 2]
    np.testing.assert_allclose(tags["coast_m"], expected, rtol=1e-4)
    line = write(tmp_path / "b.gpkg", [shapely.LineString([(179.9, 0.5), (-179.9, 0.5)])])
    assert read_filters(coast=line).apply(np.array([[180.0, 0.0]])).tags["coast_m"][0] == pytest.approx(
        GEOD.inv(180, 0, 180, 0.5)[2], abs=0.2
    )


def test_places_nowhere_or_on_the_other_side_of_the_earth_have_no_distance(tmp_path):
    path = write(tmp_path / "p.gpkg", [shapely.Point(14, 40)])
    rows = read_filters(near=path, within_m=1e9).apply(np.array([[np.nan, np.nan], [-166.0, -40.0], [14.0, 41.0]]))
    assert rows.tags["near"].tolist() == [None, None, "1"]
    assert np.isnan(rows.tags["near_m"]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tag": True}, "--tag needs --exclude"),
        ({"within_m": 3.0}, "--near and --within need each other"),
        ({"near": Path("p.gpkg")}, "--near and --within need each other"),
        ({"near": Path("p.gpkg"), "within_m": 0.0}, "--within must be a distance in meters"),
        ({"near": Path("p.gpkg"), "within_m": float("nan")}, "--within must be a distance in meters"),
    ],
)
def test_options_that_need_each_other(options, problem):
    with pytest.raises(UsageError, match=problem):
        read_filters(**options)


def test_no_detections(tmp_path):
    square = write(tmp_path / "a.gpkg", [SQUARE])
    points = write(tmp_path / "p.gpkg", [shapely.Point(14, 40)])
    rows = read_filters(exclude=[square], tag=True, near=points, within_m=5.0, coast=square).apply(np.zeros((0, 2)))
    assert {name: (tag.shape, tag.dtype) for name, tag in rows.tags.items()} == {
        "excluded": ((0,), bool), "near": ((0,), object), "near_m": ((0,), float), "coast_m": ((0,), float),
    }  # fmt: skip


def test_without_files_there_is_no_filter():
    assert read_filters() is None


def test_the_identity_depends_on_files_and_options(tmp_path):
    square = write(tmp_path / "a.gpkg", [SQUARE])
    point = write(tmp_path / "p.gpkg", [shapely.Point(14, 40)], name=["A"])
    (tmp_path / "other").mkdir()
    renamed = write(tmp_path / "other" / "p.gpkg", [shapely.Point(14, 40)], name=["B"])
    found = [
        read_filters(exclude=[square]).identity(),
        read_filters(exclude=[square], tag=True).identity(),
        read_filters(coast=square).identity(),
        read_filters(near=point, within_m=5.0).identity(),
        read_filters(near=point, within_m=6.0).identity(),
        read_filters(near=renamed, within_m=6.0).identity(),
    ]
    assert all(one != other for index, one in enumerate(found) for other in found[:index])
    assert read_filters(exclude=[square]).identity() == found[0]
