import numpy as np
import pytest
from fakes import drifting_engine
from fakes.fake_bundle import install_fake_bundle
from fakes.fake_scene import write_tif
from fakes.fake_screen import add_screen

from export.bundle.bundle import open_bundle


@pytest.fixture
def fake_bundle(tmp_path, monkeypatch):
    """The folder `bundle` of the working directory; `drifts` maps a precision to a change of its candidates."""
    return install_fake_bundle(tmp_path, monkeypatch)


@pytest.fixture
def data(tmp_path):
    """The path of a COCO json with images."""
    return str(drifting_engine.write_dataset(tmp_path / "data"))


@pytest.fixture
def screened_scene(fake_bundle, tmp_path):
    """The path of a dark scene with three squares, for the bundle, which gets a screen."""
    add_screen(open_bundle(tmp_path / "bundle"), threshold=0.25)
    pixels = np.zeros((400, 500, 3), np.uint8)
    for label, (top, left) in enumerate([(150, 170), (200, 300), (160, 190)]):
        pixels[top : top + 14, left : left + 14] = drifting_engine.COLORS[label]
    return str(write_tif(tmp_path / "scene.tif", pixels))
