"""The code of docs/detection.md runs on the files of a small run."""

import re
import runpy
from pathlib import Path

import geopandas
import pandas as pd
import pytest
import rasterio
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif
from rasterio.warp import transform

from deploy.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "detection.md"
OBJECTS = [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0), (190, 160, 200, 170, 0)]
LINER, TUG, FERRY, GONE, OTHER = 211000001, 211000002, 211000003, 211000004, 211000005


def code_of(section):
    text = PAGE.read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def report(scene, mmsi, minutes, column, row):
    """Return a report of a ship at a pixel of the scene, minutes after it was acquired."""
    with rasterio.open(scene) as dataset:
        x, y = dataset.xy(row, column, offset="ul")
        (lon,), (lat,) = transform(dataset.crs, "EPSG:4326", [x], [y])
    time = pd.Timestamp("2026-05-01T10:20:30Z") + pd.Timedelta(minutes=minutes)
    return {"mmsi": mmsi, "time": time.isoformat(), "lon": lon, "lat": lat}


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # in rasterio
@pytest.mark.parametrize("with_reports", [True, False])
def test_objects_are_matched_with_ais(tmp_path, monkeypatch, with_reports):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    monkeypatch.chdir(tmp_path)
    scene = write_tif(
        tmp_path / "harbor.tif", sea(170, 200, OBJECTS), transform=rasterio.Affine(20, 0, 5e5, 0, -20, 4.5e6)
    )
    bundle = write_bundle(tmp_path / "bundle").path
    assert main(["detect", str(bundle), str(scene), "--out", "results", "--time", "2026-05-01T10:20:30Z"]) == 0
    reports = [
        report(scene, LINER, -6, 50 - 60, 46),  # passes the first object, and is at the second at the time of the scene
        report(scene, LINER, 3, 59 + 34.5, 46),
        report(scene, TUG, 2, 130, 124 + 20),  # 400 m south of the third
        report(scene, FERRY, 0, 130, 124 + 15),  # 300 m south of the third, which each ship matches once
        report(scene, GONE, -120, 195, 165),  # at the fourth, two hours before
        report(scene, OTHER, 0, 195, 165 - 30),  # 600 m north of the fourth
    ]
    pd.DataFrame(reports if with_reports else reports[4:5]).to_csv("ais.csv", index=False)
    (tmp_path / "match.py").write_text(code_of("Matching with AIS"))
    runpy.run_path(str(tmp_path / "match.py"))
    matched = geopandas.read_file("matched.gpkg")
    by_left = {round(box.bounds[0]): row for box, row in zip(matched.geometry, matched.itertuples(), strict=True)}
    found = [by_left[500_000 + 20 * x1] for x1, *_ in OBJECTS]
    if not with_reports:
        assert all(pd.isna(one.mmsi) for one in found)
        return
    assert [None if pd.isna(one.mmsi) else int(one.mmsi) for one in found] == [None, LINER, FERRY, None]
    assert [one.ais_m for one in found[1:3]] == pytest.approx([0, 300], abs=2)
