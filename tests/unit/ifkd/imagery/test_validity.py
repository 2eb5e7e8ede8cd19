"""Pixels without data by nodata values, masks and palettes, the same in scenes, training and tiles."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from deploy.scene.read.scene import Scene
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_pixels import read_window, write_tile
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions
from ifkd.imagery.image_files import open_image, read_image
from ifkd.imagery.validity import nodata_mask

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SIZE = (48, 60)
GAP = np.s_[:, :20]
RANGE = ImageryOptions(limits=(0.0, 4000.0))


def noise(dtype: str = "uint16", bands: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 4000 if dtype != "uint8" else 250, (bands, *SIZE)).astype(dtype)


def write(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as dataset:
        dataset.write(pixels)
    return path


def write_vrt(path: Path, sources: list[Path], *, nodata: tuple = (), masks: tuple = (), dtype: str = "UInt16") -> Path:
    """Write a VRT with a band of each single-band file, and a nodata value or a mask of its own."""
    source = (
        '<SimpleSource><SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
    )
    bands = []
    for index, one in enumerate(sources):
        value = f"<NoDataValue>{nodata[index]}</NoDataValue>" if nodata else ""
        mask = (
            f'<MaskBand><VRTRasterBand dataType="Byte">{source.format(masks[index].name)}</VRTRasterBand></MaskBand>'
            if masks
            else ""
        )
        bands.append(
            f'<VRTRasterBand dataType="{dtype}" band="{index + 1}">{value}'
            f"{source.format(one.name)}{mask}</VRTRasterBand>"
        )
    path.write_text(f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}">{"".join(bands)}</VRTDataset>')
    return path


def read_scene(path: Path, **options: object) -> tuple[np.ndarray, np.ndarray]:
    with Scene(path, **options) as scene:
        patch = scene.read(Window(0, 0, *SIZE))
    return patch.pixels, patch.valid


def single_bands(folder: Path, pixels: np.ndarray) -> list[Path]:
    return [write(folder / f"b{index}.tif", band[None]) for index, band in enumerate(pixels)]


def test_each_band_has_its_own_nodata_value(tmp_path: Path) -> None:
    """Gaps, contrast and picture equal those of a file with one nodata value."""
    pixels, values = noise(), (0, 65535, 9999)
    plain = pixels.copy()
    plain[:, *GAP] = 0
    for band, value in zip(pixels, values, strict=True):
        band[GAP] = value
    vrt = write_vrt(tmp_path / "a.vrt", single_bands(tmp_path, pixels), nodata=values)
    one = write(tmp_path / "one.tif", plain, nodata=0)
    with Scene(vrt) as scene, Scene(one) as expected:
        assert scene.info.stretch == expected.info.stretch
        assert scene.info.nodata == values
    for got, same in zip(read_scene(vrt), read_scene(one), strict=True):
        np.testing.assert_array_equal(got, same)


def test_a_band_without_data_alone_gets_the_padding_color(tmp_path: Path) -> None:
    pixels = noise()
    pixels[1][GAP] = 65535
    pixels[0, 30:, 30:] = 0
    vrt = write_vrt(tmp_path / "a.vrt", single_bands(tmp_path, pixels), nodata=(0, 65535, 9999))
    got, valid = read_scene(vrt, imagery=RANGE)
    assert valid.all()
    assert (got[GAP][..., 1] == PADDING_RGB[1]).all()
    assert not (got[GAP][..., 0] == PADDING_RGB[0]).all()
    with Scene(vrt) as scene:
        assert scene.info.stretch.high[1] < 4000


def test_a_tile_of_bands_with_several_nodata_values_has_one(tmp_path: Path) -> None:
    pixels, values = noise(), (7777, 65535, 9999)
    for band, value in zip(pixels, values, strict=True):
        band[GAP] = value
    pixels[2, :, 40:] = 9999
    sources = single_bands(tmp_path, pixels)
    with rasterio.Env(), Scene(write_vrt(tmp_path / "a.vrt", sources, nodata=values), imagery=RANGE) as scene:
        window = Window(0, 0, *SIZE)
        write_tile(tmp_path / "tile.tif", scene._raster, window, *read_window(scene._raster, window))
        expected = scene.read(window).pixels
    np.testing.assert_array_equal(read_image(tmp_path / "tile.tif", imagery=RANGE), expected)


def test_each_band_has_its_own_mask(tmp_path: Path) -> None:
    """A pixel has no data where no band has any; a band that is masked alone gets the padding color."""
    pixels = noise("uint8")
    mask = np.full((1, *SIZE), 255, np.uint8)
    mask[0][GAP] = 0
    full = write(tmp_path / "full.tif", np.full_like(mask, 255))
    part = write(tmp_path / "part.tif", mask)
    sources = single_bands(tmp_path, pixels)
    every = write_vrt(tmp_path / "every.vrt", sources, masks=(part,) * 3, dtype="Byte")
    got, valid = read_scene(every)
    np.testing.assert_array_equal(valid, mask[0] > 0)
    assert (got[GAP] == PADDING_RGB).all()
    single = write_vrt(tmp_path / "single.vrt", sources, masks=(full, part, full), dtype="Byte")
    got, valid = read_scene(single)
    assert valid.all()
    assert (got[GAP][..., 1] == PADDING_RGB[1]).all()
    np.testing.assert_array_equal(got[..., [0, 2]], pixels[[0, 2]].transpose(1, 2, 0))


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize(("dtype", "ending"), [("uint8", "tif"), ("uint16", "tif"), ("uint8", "jpg"), ("uint8", "png")])
def test_masks_beside_and_inside_files(tmp_path: Path, dtype: str, ending: str, internal: bool) -> None:
    """Masks of GeoTIFF and JPEG files are inside or in a file `.msk`, and training sees them as detection does."""
    path = tmp_path / f"a.{ending}"
    driver = {"tif": "GTiff", "jpg": "JPEG", "png": "PNG"}[ending]
    mask = np.full(SIZE, 255, np.uint8)
    mask[GAP] = 0
    write(tmp_path / "source.tif", noise(dtype))
    with rasterio.open(tmp_path / "source.tif", "r+") as dataset, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        dataset.write_mask(mask)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        options = {"internal_mask": "YES" if internal else "NO"} if ending == "jpg" else {}
        copy(tmp_path / "source.tif", path, driver=driver, **options)
    got, valid = read_scene(path)
    np.testing.assert_array_equal(valid, mask > 0)
    np.testing.assert_array_equal(read_image(path), got)
    with closing(open_image(path)) as raster:
        np.testing.assert_array_equal(read_window(raster, Window(0, 0, *SIZE))[1], mask > 0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ending", ["png", "gif"])
def test_transparent_colors_of_a_palette_are_gaps(tmp_path: Path, ending: str, bits: int) -> None:
    indices = np.random.default_rng(0).integers(0, 1 << bits, SIZE).astype(np.uint8)
    colors = np.random.default_rng(2).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colors.tobytes())
    hidden = [3, 5] if ending == "png" else [3]
    transparency = bytes(0 if index in hidden else 255 for index in range(1 << bits)) if ending == "png" else 3
    path = tmp_path / f"a.{ending}"
    picture.save(path, transparency=transparency, **({"bits": bits} if ending == "png" else {}))
    expected = np.where(np.isin(indices, hidden)[..., None], np.array(PADDING_RGB, np.uint8), colors[indices])
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_scene(path)[0], expected)


def test_a_palette_of_a_geotiff_with_a_transparent_color(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 4, (1, *SIZE)).astype(np.uint8)
    path = tmp_path / "a.tif"
    write(path, indices, photometric="PALETTE", nodata=2)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (9, 8, 7, 255), 1: (50, 60, 70, 255), 2: (1, 1, 1, 255), 3: (2, 3, 4, 0)})
    got, valid = read_scene(path)
    np.testing.assert_array_equal(valid, np.isin(indices[0], [0, 1] if hides_colors(path) else [0, 1, 3]))
    assert (got[indices[0] == 1] == (50, 60, 70)).all()
    np.testing.assert_array_equal(read_image(path), got)


def hides_colors(path: Path) -> bool:
    """Return whether GDAL kept the transparency of color 3."""
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[0] == ColorInterp.palette
        return dataset.colormap(1)[3][3] == 0


@pytest.mark.parametrize("nodata", [-9999.0, 300.0, 7.5, 1e300, np.nan])
def test_a_nodata_value_outside_of_the_type_masks_nothing(nodata: float) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert nodata_mask(pixels[None], [nodata]) is None
    with Scene(pixels, nodata=nodata) as scene:
        assert scene.info.remarks == (
            f"The nodata value {nodata:g} cannot occur in array, which has pixels of type uint8.",
        )
    with Scene(pixels, nodata=7.0) as scene:
        assert scene.info.remarks == ()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "float32", "float64"])
def test_the_mask_of_nodata_equals_a_slow_version(dtype: str) -> None:
    rng = np.random.default_rng(5)
    values = rng.integers(0, 4, (3, 9, 7)).astype(dtype)
    for nodata in [(1, 2, 3), (0, 0, 0), (None, 1, None), (3, 3, 3)]:
        per_band = np.array(
            [[[value == mark for value in row] for row in band] for band, mark in zip(values, nodata, strict=True)]
        )
        got = nodata_mask(values, [None if mark is None else float(mark) for mark in nodata])
        expected = ~per_band
        if dtype == "uint8" or nodata == (0, 0, 0):
            expected = expected.any(axis=0)
        np.testing.assert_array_equal(got, expected)
