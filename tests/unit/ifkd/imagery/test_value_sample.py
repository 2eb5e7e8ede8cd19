"""Samples of values for the contrast: overviews, undeclared nodata values, blocks."""

import itertools
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling

from deploy.scene.read.scene import Scene
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.image_files import read_image
from ifkd.imagery.raster import Raster, RasterArray, RasterFile
from ifkd.imagery.value_sample import sample_values, sample_windows, without_undeclared_nodata

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def picture(height: int = 200, width: int = 300, dtype: str = "int16") -> np.ndarray:
    """Return dark water with bright objects."""
    rng = np.random.default_rng(4)
    pixels = rng.normal(500, 30, (height, width))
    for top, left in rng.integers(0, (height - 30, width - 30), (12, 2)):
        pixels[top : top + 20, left : left + 25] = rng.integers(1200, 3000)
    return pixels.astype(dtype)


def write(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=1,
        height=pixels.shape[0],
        width=pixels.shape[1],
        dtype=pixels.dtype,
        **profile,
    ) as dataset:
        dataset.write(pixels, 1)
    return path


@pytest.mark.parametrize(
    ("dtype", "mark"),
    [
        ("int16", -32768), ("int16", -9999), ("int16", 0), ("int16", 32767), ("uint16", 65535), ("uint16", 0),
        ("int32", -2147483648), ("int32", -2147483647), ("int32", -99999),
        ("float32", -3.4028234663852886e38), ("float32", 3.4e38), ("float32", -9999.9),
        ("float32", -9999.0), ("float32", 0.0), ("float32", 1e20), ("float64", -1.7976931348623157e308),
        ("float32", np.nan), ("float32", np.inf), ("float32", -np.inf),
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", [20, 140])
def test_an_undeclared_mark_never_sets_the_contrast(tmp_path: Path, dtype: str, mark: float, side: int) -> None:
    pixels = picture(dtype=dtype)
    with Scene(write(tmp_path / "plain.tif", pixels)) as scene:
        plain = scene.info
    assert plain.remarks == ()
    pixels[:side, :side] = mark
    kept = np.ones(pixels.shape, bool)
    kept[:side, :side] = False
    with Scene(write(tmp_path / "a.tif", pixels)) as scene:
        info = scene.info
    low, high = np.percentile(pixels[kept].astype(float), (2, 98))
    assert (info.stretch.low, info.stretch.high) == ((low,), (high,))
    if np.isfinite(mark):
        (remark,) = info.remarks
        assert "which is not declared as nodata" in remark
        (named,) = re.findall(r"--nodata=(\S+)", remark)
        assert np.dtype(dtype).type(float(named)) == np.dtype(dtype).type(mark)
        assert info.stretch.left_out[0].fraction == pytest.approx(side * side / pixels.size)
    with Scene(tmp_path / "a.tif", nodata=float(np.dtype(dtype).type(mark))) as scene:
        assert scene.info.stretch.low == (low,)
        assert scene.info.remarks == ()


def test_two_marks_in_one_file() -> None:
    pixels = picture(dtype="uint16")
    pixels[:30], pixels[-30:] = 0, 65535
    sample = sample_values(RasterArray(pixels), (1,))
    assert {one.value for one in sample.left_out} == {0.0, 65535.0}
    np.testing.assert_array_equal(np.sort(sample.bands[0]), np.sort(pixels[30:-30].ravel()))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dark amplitudes", lambda rng: rng.exponential(3.0, 60_000).astype(int)),
        ("dark reals", lambda rng: rng.exponential(0.02, 60_000)),
        ("saturated at 4095", lambda rng: np.minimum(rng.exponential(1500, 60_000).astype(int), 4095)),
        ("two classes", lambda rng: np.where(rng.random(60_000) < 0.3, 100, rng.normal(2000, 400, 60_000))),
        ("flat water of 0", lambda rng: rng.choice([0, 170, 230], 60_000, p=[0.9, 0.07, 0.03])),
        ("one bright object", lambda rng: np.where(rng.random(60_000) < 0.02, 3000, rng.integers(40, 70, 60_000))),
        ("constant", lambda _: np.full(60_000, 65535)),
        ("zeros", lambda _: np.zeros(60_000)),
        ("nothing", lambda _: np.zeros(0)),
        ("decibels", lambda rng: rng.normal(-12, 5, 60_000)),
    ],
)
def test_values_of_a_picture_are_not_marks(name: str, values: object) -> None:
    sample = values(np.random.default_rng(0)).astype(np.float64)
    kept, left_out = without_undeclared_nodata(sample, "float32" if name in {"dark reals", "decibels"} else "uint16")
    assert left_out == ()
    np.testing.assert_array_equal(kept, sample)


@pytest.mark.parametrize("stretch_uint8", [True, False])
def test_borders_of_eight_bits(tmp_path: Path, stretch_uint8: bool) -> None:
    pixels = (picture() // 16).clip(5, 255).astype(np.uint8)
    pixels[:, :60] = 0
    imagery = ImageryOptions(stretch_uint8=stretch_uint8)
    with Scene(write(tmp_path / "a.tif", pixels), imagery=imagery) as scene:
        assert scene.info.stretch.low[0] == (np.percentile(pixels[:, 60:], 2) if stretch_uint8 else 0)
        assert len(scene.info.remarks) == int(stretch_uint8)


@pytest.mark.parametrize("factor", [0, 1, 5])
@pytest.mark.parametrize("external", [True, False])
def test_overviews_do_not_set_the_contrast(tmp_path: Path, factor: int, external: bool) -> None:
    """Not those of another picture, and not averages."""
    pixels = picture(1100, 1200, "uint16")
    layout = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    with Scene(write(tmp_path / "plain.tif", pixels, **layout)) as scene:
        expected = scene.info.stretch
    path = write(tmp_path / "a.tif", pixels * np.uint16(factor), **layout)
    with rasterio.Env(TIFF_USE_OVR=external):
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4, 8], Resampling.average)
        with rasterio.open(path, "r+") as dataset:
            dataset.write(pixels, 1)
    with rasterio.open(path) as dataset:
        assert dataset.overviews(1) == [2, 4, 8]
    with Scene(path) as scene:
        assert scene.info.stretch == expected
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "plain.tif"))


def test_percentiles_of_a_large_raster_are_near_those_of_all_its_pixels() -> None:
    pixels = picture(2100, 1900, "uint16")
    sample = sample_values(RasterArray(pixels), (1,)).bands[0]
    assert len(sample) <= 1100 * 1100
    low, high = np.percentile(pixels, (2, 98))
    assert np.percentile(sample, (2, 98)) == pytest.approx((low, high), rel=0.1)


def test_a_small_part_with_data_is_found(tmp_path: Path) -> None:
    pixels = np.zeros((2000, 2000), np.uint16)
    pixels[1100:1140, 1310:1350] = picture(40, 40, "uint16")
    path = write(tmp_path / "a.tif", pixels, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    with Scene(path) as scene:
        assert scene.info.stretch.low[0] == pytest.approx(np.percentile(pixels[pixels > 0], 2), abs=60)
        assert scene.info.remarks == ()


class Grid(RasterArray):
    """A raster of a size and block size without pixels."""

    def __init__(self, size: tuple[int, int], blocks: tuple[int, int]) -> None:
        super().__init__(np.zeros((1, 1)))
        self.size, (self.block_rows, self.block_columns) = size, blocks


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)),
    blocks=st.tuples(st.integers(1, 1024), st.integers(1, 40_000)),
    spans=st.sampled_from([12, None]),
)
def test_windows_are_inside_disjoint_and_of_whole_blocks(
    size: tuple[int, int], blocks: tuple[int, int], spans: int | None
) -> None:
    windows = sample_windows(Grid(size, blocks), spans=spans)
    rows = sorted({(one.top, one.bottom) for one in windows})
    columns = sorted({(one.left, one.right) for one in windows})
    assert len(rows) * len(columns) == len(windows)
    for spans_of_side, length, block in ((rows, size[0], blocks[0]), (columns, size[1], blocks[1])):
        assert all(0 <= start < stop <= length for start, stop in spans_of_side)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans_of_side))
        if block <= 1024:
            assert all(start % block == 0 and (stop % block == 0 or stop == length) for start, stop in spans_of_side)
        covered = sum(stop - start for start, stop in spans_of_side)
        assert len(spans_of_side) == 12 or covered == length


def test_unreadable_blocks_are_not_in_the_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", picture(512, 512), tiled=True, blockxsize=128, blockysize=128)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with closing(RasterFile(path)) as raster:
        assert isinstance(raster, Raster)
        assert 0 < len(sample_values(raster, (1,)).bands[0]) < 512 * 512
