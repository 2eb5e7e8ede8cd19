"""QGIS reads the detections of a scene: their places, their fields and their style.

It runs in the system's Python, where the package python3-qgis is installed.
"""

import json
import os
import shutil
import subprocess

import geopandas
import numpy as np
import pytest
import shapely
from fakes.fake_scene import CLASSES, CountingEngine, write_bundle
from fakes.oriented_scene import SHIPS, SYSTEMS, OrientedEngine, harbor

from deploy.cli.main import main
from ifkd.core.html.colors import class_color

READER = """
import json, sys
from qgis.core import QgsApplication, QgsExpression, QgsExpressionContext, QgsVectorLayer
application = QgsApplication([], False)
application.initQgis()
found = []
for source in sys.argv[1:]:
    layer = QgsVectorLayer(source, "detections", "ogr")
    assert layer.isValid(), source
    rows = list(layer.getFeatures())
    context = QgsExpressionContext()
    context.setFields(layer.fields())
    context.setFeature(rows[0])
    _, loaded = layer.loadDefaultStyle()
    settings = layer.labeling().settings() if loaded else None
    found.append({
        "crs": layer.crs().authid(),
        "fields": {field.name(): [row[field.name()] for row in rows] for field in layer.fields() if field.isNumeric()},
        "polygons": [row.geometry().asWkt() for row in rows],
        "colors": {
            one.value(): one.symbol().symbolLayer(0).strokeColor().name() for one in layer.renderer().categories()
        } if loaded else None,
        "label": QgsExpression(settings.fieldName).evaluate(context) if loaded else None,
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def qgis():
    python = shutil.which("python3", path=os.defpath)
    environment = {"PATH": os.defpath, "QT_QPA_PLATFORM": "offscreen"}

    def run(code, *arguments):
        command = [python, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    if python is None or run("import qgis.core").returncode:
        pytest.skip("QGIS is not installed (apt-get install qgis-providers python3-qgis)")

    def read(*sources):
        ran = run(READER, *map(str, sources))
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return read


@pytest.mark.parametrize("oriented", [True, False], ids=["oriented", "upright"])
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_qgis_reads_the_detections(qgis, tmp_path, monkeypatch, system, oriented):
    engine = OrientedEngine(tile=128) if oriented else CountingEngine(tile=128)
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: engine)
    ships = geopandas.GeoSeries(map(shapely.Polygon, harbor(tmp_path / "harbor.tif", system)), crs=system)
    bundle = write_bundle(tmp_path / "bundle", tile=128, overlap=90).path
    assert main(["detect", str(bundle), str(tmp_path / "harbor.tif"), "--out", str(tmp_path / "out")]) == 0

    files = ("detections.geojson", "detections.gpkg|layername=detections")
    geojson, geopackage = qgis(*(tmp_path / "out" / name for name in files))
    for layer, expected in ((geojson, "EPSG:4326"), (geopackage, system)):
        assert layer["crs"] == expected
        polygons = shapely.from_wkt(layer["polygons"])
        assert set(shapely.get_num_coordinates(polygons)) == {5}
        places = ships.to_crs(expected).to_numpy()
        common = shapely.area(shapely.intersection(polygons[:, None], places))
        whole = shapely.area(shapely.union(polygons[:, None], places)) if oriented else shapely.area(places)
        agreement = common / whole
        assert agreement.max(axis=0).min() > (0.8 if oriented else 0.95)
        fields = layer["fields"]
        assert {"score", "length_m", "width_m"} <= set(fields)
        assert ("heading_deg" in fields) == oriented
        if oriented:
            assert len(polygons) == len(SHIPS)
            headings = np.array(fields["heading_deg"])[agreement.argmax(axis=0)]
            assert (np.abs((headings - [ship[2] for ship in SHIPS] + 90) % 180 - 90) < 2).all()
    assert geojson["colors"] is None
    assert geopackage["colors"] == {
        name: "#{:02x}{:02x}{:02x}".format(*class_color(label)) for label, name in enumerate(CLASSES)
    }
    assert geopackage["label"] == f"cargo {geopackage['fields']['score'][0]:.2f}"
