"""Reading of run records: the current schema, older ones and other files."""

import json

import pytest
from fakes.fake_scene import CountingEngine, sea, write_bundle, write_tif

from deploy.cli.main import main
from deploy.scene.write.run_record import read_run_record
from ifkd.core.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.engines.open_engine", lambda *_, **__: CountingEngine())
    scene = write_tif(tmp_path / "harbor.tif", sea(100, 90, [(5, 5, 17, 15, 0)]))
    bundle = write_bundle(tmp_path / "bundle").path
    assert main(["detect", str(bundle), str(scene), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


def test_a_record_is_read_as_it_was_written(folder):
    record = read_run_record(folder)
    assert record.model_dump(mode="json") == json.loads((folder / "run.json").read_text())
    assert (record.scene.name, record.objects, record.scene.height_px) == ("harbor.tif", 1, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, r"another schema version: got 1, expected 2\. Create it again with `ifkd detect`"),
        ({"schema_version": None}, r"another schema version: got none"),
        ({"objects": "many"}, r"run\.json is invalid at objects"),
    ],
)
def test_another_schema_is_refused_with_the_command_that_creates_it(folder, change, message):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_run_record(folder)


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no run\.json: expected an output folder of `ifkd detect`"):
        read_run_record(tmp_path)
