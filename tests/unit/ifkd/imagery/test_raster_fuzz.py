"""Fuzzing: rasters with random roles, nodata values, masks, overviews and damaged tags give pixels or an error of ours.

`make fuzz` makes 2,000 files, the test suite a tenth of them, with fixed seeds.
"""

import os
import random
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling

from deploy.scene.read.scene import Scene
from ifkd.core.errors import DataError, SceneError
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_pixels import read_window, source_values, write_tile
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import open_image, read_image

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # rasterio logs messages as UTF-8
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy about damaged values
]
GROUPS = 4
FILES = int(os.environ.get("IFKD_FUZZED_FILES", "200")) // 2 // GROUPS
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64", "complex_int16")
NODATA = (
    "nan",
    "inf",
    "-inf",
    "0",
    "-9999",
    "255",
    "65535",
    "1e400",
    "-3.4028234663852886e+38",
    "",
    "x",
    "1 2",
    "\x00",
    "ä",
)
SIZE = (70, 90)


def random_values(rng: random.Random, dtype: str, bands: int) -> np.ndarray:
    generator = np.random.default_rng(rng.randrange(1 << 30))
    values = generator.integers(0, 120, (bands, *SIZE))
    for _ in range(rng.randrange(3)):
        mark = rng.choice([0, 127, 100, 1])
        values[rng.randrange(bands), : rng.randrange(1, SIZE[0]), : rng.randrange(1, SIZE[1])] = mark
    if dtype.startswith("complex"):
        return (values + 1j * values[::-1]).astype("complex64")
    values = values.astype(dtype)
    if values.dtype.kind == "f" and rng.random() < 0.5:
        values[:, ::7, ::5] = rng.choice([np.nan, np.inf, -np.inf, -3.4e38])
    return values


def write_raster(path: Path, rng: random.Random) -> None:
    """Write a GeoTIFF with random properties."""
    dtype, bands = rng.choice(DTYPES), rng.randint(1, 6)
    layout = rng.choice([{}, {"tiled": True, "blockxsize": 16, "blockysize": 32}, {"blockysize": 1}])
    profile = {"photometric": rng.choice(["MINISBLACK", "RGB"])} if bands >= 3 and dtype == "uint8" else {}
    height, width = SIZE
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=dtype, **layout, **profile
    ) as dataset:
        dataset.write(random_values(rng, dtype, bands))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=rng.random() < 0.5), rasterio.open(path, "r+") as dataset:
        if rng.random() < 0.3 and dtype == "uint8":
            dataset.write_colormap(1, {index: (index, 0, 0, rng.choice([0, 255])) for index in range(0, 256, 3)})
        elif rng.random() < 0.7:
            choices = [role for role in ColorInterp if role != ColorInterp.palette]
            dataset.colorinterp = [rng.choice(choices) for _ in range(bands)]
        if rng.random() < 0.3:
            dataset.write_mask(np.random.default_rng(0).integers(0, 2, SIZE).astype(bool))
        if rng.random() < 0.3:
            dataset.build_overviews([2, 4], Resampling.nearest)


def scrambled(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes of a TIFF with other values in its directory, which is at the end or the beginning."""
    changed = bytearray(content)
    for _ in range(rng.choice([0, 0, 1, 3, 12])):
        near = rng.choice([0, max(0, len(changed) - 600)])
        position = min(len(changed) - 1, near + rng.randrange(600))
        changed[position] = rng.choice([0, 1, 2, 3, 4, 255, rng.randrange(256)])
    return bytes(changed)


def write_vrt(path: Path, source: Path, rng: random.Random) -> None:
    """Write a VRT with roles, nodata values and masks of each band."""
    roles = ("Red", "Green", "Blue", "Alpha", "NIR", "Palette", "Undefined", "Cyan", "nonsense", "")
    file = f'<SourceFilename relativeToVRT="1">{source.name}</SourceFilename>'
    part = f"<SimpleSource>{file}<SourceBand>1</SourceBand></SimpleSource>"
    bands = []
    for band in range(1, rng.randint(1, 5) + 1):
        nodata = re.sub(r"[\x00]", "", rng.choice(NODATA))
        inner = f"<ColorInterp>{rng.choice(roles)}</ColorInterp>" if rng.random() < 0.7 else ""
        inner += f"<NoDataValue>{nodata}</NoDataValue>" if rng.random() < 0.6 else ""
        mask = f'<MaskBand><VRTRasterBand dataType="Byte">{part}</VRTRasterBand></MaskBand>'
        inner += part + (mask if rng.random() < 0.4 else "")
        kind = rng.choice(["Byte", "Byte", "UInt16", "Float32", "CFloat32"]) if rng.random() < 0.2 else "UInt16"
        bands.append(f'<VRTRasterBand dataType="{kind}" band="{band}">{inner}</VRTRasterBand>')
    text = f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}">{"".join(bands)}</VRTDataset>'
    path.write_text(text, encoding="utf-8")


def random_imagery(rng: random.Random) -> ImageryOptions:
    return ImageryOptions(
        bands=rng.choice([None, None, (1,), (3, 2, 1)]),
        alpha=rng.choice([None, None, None, "none", 1, 4]),
        nodata=rng.choice([None, None, 0.0, float("nan"), -1e300]),
        stretch_uint8=rng.random() < 0.5,
    )


def read_everywhere(path: Path, imagery: ImageryOptions, folder: Path) -> bool:
    """Read a raster as scene, training image and tile; return whether all could, and that their pixels agree."""
    window = Window(0, 0, *SIZE)
    try:
        with Scene(path, imagery=imagery) as scene:
            if scene.size != SIZE:
                return False
            patch = scene.read(window)
            scene.overview(30)
        assert patch.pixels.shape == (*SIZE, 3)
        assert all("\n" not in remark for remark in scene.info.remarks)
    except SceneError:
        return False
    if path.suffix == ".vrt":
        return True
    try:
        np.testing.assert_array_equal(read_image(path, imagery=imagery), patch.pixels)
        with closing(open_image(path, imagery=imagery)) as raster:
            source_values(raster)
            write_tile(folder / "tile.tif", raster, window, *read_window(raster, window))
    except DataError:
        return False
    return True


@pytest.mark.parametrize("group", range(GROUPS))
def test_scrambled_rasters(tmp_path: Path, group: int) -> None:
    rng = random.Random(group)  # noqa: S311 - a fixed seed
    found = []
    for index in range(FILES):
        path = tmp_path / f"{index}.tif"
        write_raster(path, rng)
        path.write_bytes(scrambled(path.read_bytes(), rng))
        found.append(read_everywhere(path, random_imagery(rng), tmp_path))
    assert {True, False} <= set(found)


@pytest.mark.parametrize("group", range(GROUPS))
def test_scrambled_bands_of_a_vrt(tmp_path: Path, group: int) -> None:
    rng = random.Random(group)  # noqa: S311 - a fixed seed
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=1, dtype="uint16"
    ) as dataset:
        dataset.write(random_values(rng, "uint16", 1))
    found = []
    for index in range(FILES):
        path = tmp_path / f"{index}.vrt"
        write_vrt(path, tmp_path / "a.tif", rng)
        found.append(read_everywhere(path, random_imagery(rng), tmp_path))
    assert {True, False} <= set(found)
