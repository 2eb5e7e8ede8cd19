"""Vector files in many formats and states: what is read, what is left out with an account, and what is refused."""

import json
import shutil

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely

from deploy.scene.read.vector_file import read_vector_file
from ifkd.core.errors import UsageError

SQUARE = shapely.box(1, 1, 2, 2)


def geojson(path, *geometries, properties=None, **members):
    features = [{"type": "Feature", "properties": properties or {}, "geometry": geometry} for geometry in geometries]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def polygon(*points):
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}


def read(path, kinds=("Polygon",)):
    return read_vector_file(path, kinds=list(kinds), what="file of areas")


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb", "gml", "kml"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"land.{suffix}"
    geopandas.GeoDataFrame({"name": ["x"]}, geometry=[SQUARE], crs="EPSG:4326").to_file(path)
    file = read(path)
    assert file.geometries[0].equals(SQUARE)
    assert file.names == ("x",)
    assert file.is_geographic
    assert (file.record.source, file.record.features, file.record.remark()) == (path.name, 1, None)


def test_a_zipped_shapefile(tmp_path):
    (tmp_path / "files").mkdir()
    geopandas.GeoDataFrame(geometry=[SQUARE], crs="EPSG:32633").to_file(tmp_path / "files" / "land.shp")
    path = shutil.make_archive(str(tmp_path / "land"), "zip", tmp_path / "files")
    file = read(type(tmp_path)(path))
    assert file.geometries[0].equals(SQUARE)
    assert not file.is_geographic


def test_what_is_left_out_is_counted(tmp_path):
    square = polygon([0, 0], [1, 0], [1, 1])
    collection = {"type": "GeometryCollection", "geometries": [
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "MultiPolygon", "coordinates": [square["coordinates"], square["coordinates"]]},
    ]}  # fmt: skip
    empty = {"type": "Polygon", "coordinates": []}
    point = {"type": "Point", "coordinates": [5, 5]}
    file = read(geojson(tmp_path / "a.geojson", square, None, empty, point, collection))
    record = file.record
    assert (record.features, record.without_geometry, record.other_geometry) == (5, 2, 1)
    assert len(file.geometries) == 3
    assert file.names == ("0", "4", "4")
    assert record.remark() == (
        "a.geojson, 5 features: 2 without a geometry, left out, 1 of another geometry type, left out."
    )


def test_geometries_that_are_not_finite_are_left_out(tmp_path):
    endless = shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)])
    path = tmp_path / "a.gpkg"
    content = np.array([shapely.to_wkb(one) for one in (endless, SQUARE)], object)
    pyogrio.raw.write(path, content, [], [], driver="GPKG", geometry_type="Polygon", crs="EPSG:4326")
    file = read(path)
    assert (len(file.geometries), file.record.without_geometry) == (1, 1)


def test_heights_and_curves_are_read_in_two_dimensions_and_as_lines(tmp_path):
    high = {"type": "Polygon", "coordinates": [[[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 0, 5]]]}
    assert not read(geojson(tmp_path / "a.geojson", high)).geometries[0].has_z
    path = tmp_path / "curve.csv"
    path.write_text('WKT,name\n"CURVEPOLYGON(CIRCULARSTRING(0 0,1 1,2 0,1 -1,0 0))",disc\n')
    path.with_suffix(".prj").write_text("")
    with pytest.raises(UsageError, match="no coordinate system"):
        read(path)


def test_a_coordinate_system_in_an_old_geojson_is_used(tmp_path):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    file = read(geojson(tmp_path / "a.geojson", polygon([5e5, 4e6], [6e5, 4e6], [6e5, 5e6]), crs=crs))
    assert file.georeference.crs.to_epsg() == 32633


@pytest.mark.parametrize(
    ("geometries", "problem"),
    [
        ([], "has no Polygon"),
        ([None], "has no Polygon"),
        ([{"type": "Point", "coordinates": [1, 1]}], "has no Polygon"),
        ([polygon([5e5, 4e6], [6e5, 4e6], [6e5, 5e6])], "is not in longitude and latitude"),
    ],
)
def test_geojson_without_usable_areas(tmp_path, geometries, problem):
    with pytest.raises(UsageError, match=problem):
        read(geojson(tmp_path / "a.geojson", *geometries))


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"type": "FeatureCollection"}', "\x00\xff", "a,b\n1,2\n"])
@pytest.mark.parametrize("name", ["a.geojson", "a.csv", "a.shp", "a.txt"])
def test_files_that_are_no_vector_files(tmp_path, content, name):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="file of areas"):
        read(tmp_path / name)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "none.gpkg", tmp_path):
        with pytest.raises(UsageError, match="file of areas"):
            read(path)


def test_several_layers_are_refused_with_their_names(tmp_path):
    path = tmp_path / "a.gpkg"
    for layer in ("land", "ice"):
        geopandas.GeoDataFrame(geometry=[SQUARE], crs="EPSG:4326").to_file(path, layer=layer)
    with pytest.raises(UsageError, match="needs exactly one layer") as error:
        read(path)
    assert "the layers land, ice" in error.value.report()


def test_a_table_beside_the_only_layer_with_geometries_is_ignored(tmp_path):
    path = tmp_path / "a.gpkg"
    geopandas.GeoDataFrame(geometry=[SQUARE], crs="EPSG:4326").to_file(path, layer="land")
    pyogrio.write_dataframe(geopandas.GeoDataFrame({"a": [1]}).drop(columns=[]), path, layer="notes")
    assert len(read(path).geometries) == 1


def test_files_without_a_coordinate_system_are_refused(tmp_path):
    path = tmp_path / "a.shp"
    geopandas.GeoDataFrame(geometry=[SQUARE], crs="EPSG:4326").to_file(path)
    path.with_suffix(".prj").unlink()
    with pytest.raises(UsageError, match="has no coordinate system") as error:
        read(path)
    assert "ogr2ogr -a_srs" in error.value.report()


def test_a_local_coordinate_system_is_refused(tmp_path):
    path = tmp_path / "a.gpkg"
    local = 'LOCAL_CS["drawing",UNIT["metre",1]]'
    geometry = np.array([shapely.to_wkb(SQUARE)], object)
    pyogrio.raw.write(path, geometry, [], [], driver="GPKG", geometry_type="Polygon", crs=local)
    with pytest.raises(UsageError, match="coordinate system"):
        read(path)


def test_the_digest_depends_on_geometries_names_and_coordinate_system(tmp_path):
    digests = set()
    for index, (geometry, name, crs) in enumerate(
        [(SQUARE, "a", 4326), (SQUARE, "b", 4326), (SQUARE, "a", 4258), (SQUARE.buffer(1), "a", 4326)]
    ):
        path = tmp_path / f"{index}.gpkg"
        geopandas.GeoDataFrame({"name": [name]}, geometry=[geometry], crs=crs).to_file(path)
        digests.add(read(path).record.sha256)
        assert read(path).record.sha256 in digests
    assert len(digests) == 4
