"""The style in a GeoPackage is where QGIS looks for it, and fits the layer and its classes."""

import re
import sqlite3

import geopandas
import pyogrio
from defusedxml import ElementTree
from fakes.fake_scene import CLASSES, CountingEngine, sea, write_bundle, write_tif

from deploy.cli.main import main
from deploy.scene.write.qgis_style import qml
from ifkd.core.html.colors import class_color


def test_the_geopackage_has_the_default_style_of_its_layer(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    scene = write_tif(tmp_path / "s.tif", sea(90, 90, [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1)]))
    bundle = write_bundle(tmp_path / "bundle").path
    for _ in range(2):
        assert main(["detect", str(bundle), str(scene), "--out", str(tmp_path), "--format", "gpkg"]) == 0
        path = tmp_path / "detections.gpkg"
        with sqlite3.connect(path) as database:
            database.row_factory = sqlite3.Row
            (style,) = map(dict, database.execute("select * from layer_styles"))
            (geometry,) = map(dict, database.execute("select * from gpkg_geometry_columns"))
            (registered,) = database.execute("select data_type from gpkg_contents where table_name = 'layer_styles'")
            assert tuple(registered) == ("attributes",)
    assert style.pop("styleQML") == qml(CLASSES)
    assert style == {
        "id": 1,
        "f_table_catalog": "",
        "f_table_schema": "",  # QGIS compares it with an empty text, not with null
        "f_table_name": geometry["table_name"],
        "f_geometry_column": geometry["column_name"],
        "styleName": "classes",
        "styleSLD": "",
        "useAsDefault": 1,
        "description": "Boxes and labels by class",
        "owner": "",
        "ui": "",
        "update_time": "2000-01-01T00:00:00Z",
    }
    assert pyogrio.list_layers(path)[:, 0].tolist() == ["detections", "layer_styles"]
    assert len(geopandas.read_file(path, layer="detections")) == 2


def test_every_class_has_its_color_and_boxes_have_labels():
    classes = ("cargo & tanker", "<1>", 'a "b"', *map(str, range(20)))
    root = ElementTree.fromstring(qml(classes))
    assert (root.tag, root.get("labelsEnabled")) == ("qgis", "1")
    renderer = root.find("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class_name")
    categories, symbols = renderer.findall("categories/category"), renderer.findall("symbols/symbol")
    assert [one.get("value") for one in categories] == list(classes)
    colors = {
        symbol.get("name"): symbol.find("layer/Option/Option[@name='outline_color']").get("value") for symbol in symbols
    }
    for label, category in enumerate(categories):
        assert colors[category.get("symbol")] == "{},{},{},255".format(*class_color(label))
    field = root.find("labeling/settings/text-style").get("fieldName")
    assert set(re.findall(r'"(\w+)"', field)) == {"class_name", "score"}
