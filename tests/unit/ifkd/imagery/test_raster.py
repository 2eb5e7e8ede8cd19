"""Rasters of complex numbers, and with several pages; and files with damaged metadata."""

import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from deploy.scene.read.scene import Scene
from deploy.scene.read.scene_list import read_sources
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_pixels import read_window, write_tile
from ifkd.imagery.address import RasterAddress, is_address, parse_source
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions
from ifkd.imagery.image_files import open_image, read_image
from ifkd.imagery.raster import RasterFile

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RNG = np.random.default_rng(0)
SIZE = (50, 60)


def write(path: Path, pixels: np.ndarray, dtype: str | None = None, **profile: object) -> Path:
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", **profile}
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=dtype or pixels.dtype, **profile
    ) as dataset:
        dataset.write(pixels)
    return path


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_numbers_are_read_as_their_magnitude(tmp_path: Path, dtype: str) -> None:
    """In scenes, training and tiles, also reduced in size, and with 0 as nodata."""
    values = (RNG.integers(-200, 200, (1, *SIZE)) + 1j * RNG.integers(1, 200, (1, *SIZE))).astype(
        "complex128" if dtype == "complex128" else "complex64"
    )
    values[:, :10] = 0
    path = write(tmp_path / "a.tif", values, dtype, nodata=0)
    plain = write(tmp_path / "plain.tif", np.abs(values).astype(np.float32), nodata=0)
    with Scene(path) as scene, Scene(plain) as expected:
        np.testing.assert_allclose(scene.info.stretch.high, expected.info.stretch.high, rtol=1e-6)
        got = scene.read(Window(0, 0, *SIZE)).pixels
        np.testing.assert_allclose(got, expected.read(Window(0, 0, *SIZE)).pixels, atol=1)
        assert (got[:10] == PADDING_RGB).all()
        assert abs(scene.overview(20).pixels.mean() - got.mean()) < 20
    np.testing.assert_array_equal(read_image(path), got)
    with closing(open_image(path)) as raster:
        write_tile(tmp_path / "tile.tif", raster, Window(0, 0, *SIZE), *read_window(raster, Window(0, 0, *SIZE)))
    np.testing.assert_allclose(read_image(tmp_path / "tile.tif"), got, atol=1)
    with Scene(values[0]) as array:
        assert array.info.dtype == ("float64" if dtype == "complex128" else "float32")


def test_pages_of_a_tiff_are_named_and_can_be_read(tmp_path: Path) -> None:
    pages = RNG.integers(0, 256, (3, *SIZE), dtype=np.uint8)
    path = tmp_path / "a.tif"
    first, *others = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=others)
    with Scene(path) as scene:
        (remark,) = scene.info.remarks
        np.testing.assert_array_equal(scene.read(Window(0, 0, *SIZE)).pixels[..., 0], pages[0])
    name = f"GTIFF_DIR:3:{path}"
    assert remark.startswith("a.tif contains 3 pages or subdatasets, of which the first is read")
    assert name in remark
    assert is_address(name)
    with Scene(name) as scene:
        assert scene.info.name == "a_3"
        np.testing.assert_array_equal(scene.read(Window(0, 0, *SIZE)).pixels[..., 0], pages[2])


def test_a_file_named_like_a_subdataset_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("AB:c.tif"), np.ones((1, 4, 4), np.uint8))
    assert parse_source("AB:c.tif") == Path("AB:c.tif")
    assert parse_source("AB:d.tif") == RasterAddress("AB:d.tif")
    assert parse_source("C:\\data\\d.tif") == Path("C:\\data\\d.tif")
    assert parse_source('NETCDF:"/data/x.nc":sea').name == "x_sea"
    assert parse_source("GPKG:two.gpkg:a").name == "two_a"
    with pytest.raises(SceneError, match="cannot be opened"):
        Scene("GTIFF_DIR:2:none.tif")


def test_bands_of_several_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", np.ones((1, *SIZE), np.uint8))
    band = (
        '<VRTRasterBand dataType="{}" band="{}"><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>\
<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
    )
    text = band.format("Byte", 1) + band.format("UInt16", 2)
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="60" rasterYSize="50">{text}</VRTDataset>')
    with pytest.raises(SceneError, match=r"bands of several types \(uint8, uint16\)"):
        Scene(tmp_path / "a.vrt")


def test_files_with_the_same_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    sources = ""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.tif", np.ones((1, *SIZE), np.uint8))
        sources += f"""<SimpleSource><SourceFilename relativeToVRT="1">{folder}/x.tif</SourceFilename>
<SourceBand>1</SourceBand></SimpleSource>"""
    band = f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand>'
    (tmp_path / "m.vrt").write_text(f'<VRTDataset rasterXSize="60" rasterYSize="50">{band}</VRTDataset>')
    with closing(RasterFile(tmp_path / "m.vrt")) as raster:
        assert sorted(raster.files()) == ["a/x.tif", "b/x.tif", "m.vrt"]


def test_metadata_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", np.ones((1, *SIZE), np.uint8))
    closed = []
    monkeypatch.setattr("ifkd.imagery.raster._palette", lambda dataset: closed.append(dataset) or int("x"))
    with pytest.raises(SceneError, match=r"a\.tif has metadata that cannot be read"):
        RasterFile(path, imagery=ImageryOptions())
    assert closed[0].closed


@pytest.mark.parametrize("reference", ["GTIFF_DIR:2:pages.tif", "/vsizip/pages.zip/folder/pages.tif"])
def test_a_file_within_a_path_of_gdal_is_relative_to_its_list(tmp_path: Path, reference: str) -> None:
    """And absolute, so that another process reads it."""
    pages = [Image.fromarray(page) for page in RNG.integers(0, 256, (2, *SIZE), dtype=np.uint8)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with zipfile.ZipFile(tmp_path / "pages.zip", "w") as archive:
        archive.write(tmp_path / "pages.tif", "folder/pages.tif")
    (tmp_path / "list.txt").write_text(reference)
    (source,) = read_sources([str(tmp_path / "list.txt")])
    with closing(RasterFile(source.location)) as raster:
        assert raster.size == SIZE
    assert str(tmp_path) in str(source.location)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grays_of_few_bits_are_from_black_to_white(tmp_path: Path, ending: str, bits: int) -> None:
    """In scenes, training and tiles, as Pillow displays them."""
    values = RNG.integers(0, 1 << bits, (1, *SIZE), dtype=np.uint8)
    path = write(tmp_path / f"a.{ending}", values, driver={"png": "PNG", "tif": "GTiff"}[ending], nbits=bits)
    expected = np.repeat(values[0, :, :, None] * (255 // ((1 << bits) - 1)), 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    with Scene(path) as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, *SIZE)).pixels, expected)
    np.testing.assert_array_equal(read_image(tile_of(path)), expected)


def test_grays_whose_zero_is_white(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (1, *SIZE), dtype=np.uint8)
    path = write(tmp_path / "a.tif", values, photometric="MINISWHITE", nodata=7)
    with Scene(path) as scene, Image.open(path) as displayed:
        got = scene.read(Window(0, 0, *SIZE))
        expected = np.asarray(displayed.convert("RGB"))[got.valid]
        np.testing.assert_array_equal(got.valid, values[0] != 7)
    np.testing.assert_array_equal(got.pixels[got.valid], expected)
    np.testing.assert_array_equal(read_image(tile_of(path)), got.pixels)  # 7 is another gray there


def test_a_palette_of_16_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 3, (1, *SIZE)).astype(np.uint16) * 700
    colors = {0: (9, 8, 7, 255), 700: (200, 0, 0, 255), 1400: (0, 0, 250, 255)}
    path = write(tmp_path / "a.tif", values, photometric="PALETTE")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, colors)
    with Scene(path) as scene:
        assert scene.info.stretch.rule == "as is"
        got = scene.read(Window(0, 0, *SIZE)).pixels
    np.testing.assert_array_equal(got, np.array([colors[one][:3] for one in colors])[values[0] // 700])
    np.testing.assert_array_equal(read_image(tile_of(path)), got)


def tile_of(path: Path) -> Path:
    """Return a tile that is the whole image."""
    with closing(open_image(path)) as raster:
        write_tile(path.with_name("tile.tif"), raster, Window(0, 0, *SIZE), *read_window(raster, Window(0, 0, *SIZE)))
    return path.with_name("tile.tif")
