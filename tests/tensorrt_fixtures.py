"""Fixture of TensorRT's Python bindings on a stand-in for its libraries."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fakes.tensorrt_stand_in import StandIn


@pytest.fixture(scope="session")
def stand_in_libraries(make_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The folder of the stand-in's libraries; a process loads no others."""
    from fakes.tensorrt_stand_in import build_libraries, installed_major

    major = installed_major()
    return make_once(f"tensorrt{major}", lambda folder: build_libraries(folder, major))


@pytest.fixture(scope="session")
def loaded_stand_in(stand_in_libraries: Path) -> "StandIn":
    """The stand-in, loaded once for a process."""
    from fakes.tensorrt_stand_in import StandIn

    return StandIn(stand_in_libraries)


@pytest.fixture
def stand_in(loaded_stand_in: "StandIn", monkeypatch: pytest.MonkeyPatch) -> Iterator["StandIn"]:
    """TensorRT under its name; after the test, all of its objects must be deleted, in the right order."""
    monkeypatch.setitem(sys.modules, "tensorrt", loaded_stand_in.module)
    loaded_stand_in.reset()
    yield loaded_stand_in
    assert loaded_stand_in.mistakes == []
    assert loaded_stand_in.alive == 0
