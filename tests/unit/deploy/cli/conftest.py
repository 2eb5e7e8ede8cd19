import pytest
from fakes import drifting_engine
from fakes.fake_bundle import install_fake_bundle


@pytest.fixture
def fake_bundle(tmp_path, monkeypatch):
    """The folder `bundle` of the working directory; `drifts` maps a precision to a change of its candidates."""
    return install_fake_bundle(tmp_path, monkeypatch)


@pytest.fixture
def data(tmp_path):
    """The path of a COCO json with images."""
    return str(drifting_engine.write_dataset(tmp_path / "data"))
