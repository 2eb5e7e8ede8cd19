"""Addresses of rasters."""

from pathlib import Path

import pytest

from ifkd.core.errors import SceneError
from ifkd.imagery.address import RasterAddress, is_address, parse_source


def test_addresses_are_gdals_and_keys_are_not_shown() -> None:
    assert parse_source("https://host/a.tif?key=1") == RasterAddress("/vsicurl/https://host/a.tif?key=1")
    assert str(parse_source("https://host/a.tif?key=1")) == "/vsicurl/https://host/a.tif"
    assert parse_source("https://host/dir/a.tif?key=1").name == "a.tif"
    assert parse_source("/vsizip/a.zip/b.tif") == RasterAddress("/vsizip/a.zip/b.tif")
    assert parse_source("gs://b/a.tif") == RasterAddress("/vsigs/b/a.tif")
    assert parse_source("file:///x/a.tif") == Path("/x/a.tif")
    assert parse_source("file:///x/a%20b.tif") == Path("/x/a b.tif")
    assert parse_source("HTTPS://host/a.tif") == RasterAddress("/vsicurl/https://host/a.tif")
    with pytest.raises(SceneError, match="cannot be read from ftp"):
        parse_source("ftp://host/a.tif")


@pytest.mark.parametrize("name", ["azores.tif", "s3", "https", "a:b.tif", "a b://c.tif", "vsis3/a.tif", "C:/a.tif"])
def test_names_that_resemble_addresses_are_paths(name: str) -> None:
    assert not is_address(name)
    assert parse_source(name) == Path(name)


def test_a_local_folder_whose_name_begins_like_a_path_of_gdal_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_address("/vsidata/a.tif")
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert parse_source("/vsidata/a.tif") == Path("/vsidata/a.tif")
