import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from fakes.fake_scene import sea, write_tif
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from deploy.scene.read.scene import Scene
from deploy.scene.read.tile_reader import read_tiles
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import TileGrid, Window
from ifkd.imagery.contrast import PADDING_RGB

REAL = Path(__file__).parents[6] / "shared" / "data" / "geotiff"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real rasters are only with developers and CI")
RNG = np.random.default_rng(0)


def noise(height, width, bands=3, dtype=np.uint8):
    top = 256 if dtype == np.uint8 else 4000
    return RNG.integers(0, top, (height, width, bands)).astype(dtype)


def whole(scene):
    return scene.read(Window(0, 0, *scene.size))


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
        {"tiled": True, "blockxsize": 16, "blockysize": 48, "interleave": "band"},
        {"blockysize": 7, "compress": "lzw"},
        {"blockysize": 1},
        {"BIGTIFF": "YES", "blockysize": 90},
    ],
)
def test_uint8_is_read_as_it_is_whatever_the_layout(tmp_path, profile):
    pixels = noise(90, 130)
    with Scene(write_tif(tmp_path / "s.tif", pixels, **profile)) as scene:
        assert scene.size == (90, 130)
        assert scene.info.stretch.rule == "as is"
        np.testing.assert_array_equal(whole(scene).pixels, pixels)
        for tile in read_tiles(scene, TileGrid(scene.size, (40, 40), 11)):
            window = tile.window
            np.testing.assert_array_equal(
                tile.patch.pixels, pixels[window.top : window.bottom, window.left : window.right]
            )


@pytest.mark.parametrize("suffix", ["png", "jpg", "vrt", "tif"])
def test_other_formats_equal_what_pillow_or_rasterio_reads(tmp_path, suffix):
    pixels = noise(40, 50)
    path = tmp_path / f"s.{suffix}"
    if suffix == "vrt":
        write_tif(tmp_path / "s.tif", pixels)
        path.write_text(
            '<VRTDataset rasterXSize="50" rasterYSize="40">'
            + "".join(
                f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename relativeToVRT="1">s.tif'
                f"</SourceFilename><SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
                for b in (1, 2, 3)
            )
            + "</VRTDataset>"
        )
    else:
        Image.fromarray(pixels).save(path, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    with Scene(path) as scene:
        expected = pixels if suffix == "vrt" else np.asarray(Image.open(path))
        difference = np.abs(whole(scene).pixels.astype(int) - expected)
        assert difference.max() <= (2 if suffix == "jpg" else 0)
        assert scene.info.georeference is None


def test_a_window_beyond_the_border_is_padded_with_the_mean_color(tmp_path):
    pixels = noise(20, 30)
    with Scene(write_tif(tmp_path / "s.tif", pixels)) as scene:
        patch = scene.read(Window(-5, -4, 40, 50))
    np.testing.assert_array_equal(patch.pixels[5:25, 4:34], pixels)
    outside = np.ones((40, 50), bool)
    outside[5:25, 4:34] = False
    assert (patch.pixels[outside] == PADDING_RGB).all()
    np.testing.assert_array_equal(patch.valid, ~outside)


def test_one_band_is_repeated_and_bands_are_chosen(tmp_path):
    pixels = noise(20, 30, bands=5)
    path = write_tif(tmp_path / "s.tif", pixels)
    with Scene(path) as scene:
        assert scene.info.bands == (1, 2, 3)
        np.testing.assert_array_equal(whole(scene).pixels, pixels[:, :, :3])
    with Scene(path, bands=(5, 3, 1)) as scene:
        np.testing.assert_array_equal(whole(scene).pixels, pixels[:, :, [4, 2, 0]])
    with Scene(path, bands=(4,)) as scene:
        np.testing.assert_array_equal(whole(scene).pixels, pixels[:, :, [3, 3, 3]])
    for wrong in [(1, 2), (1, 2, 6), (0,), ()]:
        with pytest.raises(SceneError, match="one or three of 1 2 3 4 5"):
            Scene(path, bands=wrong)


def test_a_palette_becomes_its_colors(tmp_path):
    colors = noise(1, 256)[0]
    index = noise(20, 30, bands=1)[..., 0]
    image = Image.frombytes("P", (30, 20), index.tobytes())
    image.putpalette(colors.tobytes())
    image.save(tmp_path / "s.png")
    with Scene(tmp_path / "s.png") as scene:
        np.testing.assert_array_equal(whole(scene).pixels, colors[index])


def test_alpha_is_no_color_but_says_what_is_valid(tmp_path):
    rgba = noise(20, 30, bands=4)
    rgba[..., 3] = np.where(np.arange(30) < 12, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "s.png")
    with Scene(tmp_path / "s.png") as scene:
        patch = whole(scene)
    assert not patch.valid[:, :12].any()
    assert patch.valid[:, 12:].all()
    assert (patch.pixels[:, :12] == PADDING_RGB).all()
    np.testing.assert_array_equal(patch.pixels[:, 12:], rgba[:, 12:, :3])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.uint32])
def test_a_given_range_is_linear_and_cut_never_wrapped(tmp_path, dtype):
    ramp = np.arange(0, 1200, dtype=dtype).reshape(30, 40)
    with Scene(write_tif(tmp_path / "s.tif", ramp), scale_range=(100.0, 1000.0)) as scene:
        got = whole(scene).pixels
        assert scene.info.stretch.rule == "given"
        assert scene.info.stretch.low == (100.0,)
    expected = np.rint(((ramp.astype(float) - 100) / 900 * 255).clip(0, 255))
    np.testing.assert_allclose(got[..., 0], expected, atol=1)
    assert (np.diff(got[..., 0].ravel().astype(int)) >= 0).all()
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_percentiles_are_of_valid_pixels_band_by_band(tmp_path):
    pixels = np.stack([RNG.normal(1000, 100, (200, 300)), RNG.normal(9000, 50, (200, 300))] * 2, axis=2)[..., :3]
    pixels = pixels.astype(np.uint16)
    pixels[:, :150] = 0
    with Scene(write_tif(tmp_path / "s.tif", pixels, nodata=0)) as scene:
        stretch = scene.info.stretch
        patch = whole(scene)
    assert stretch.rule == "percentiles 2-98"
    low, high = np.percentile(pixels[:, 150:].reshape(-1, 3), [2, 98], axis=0)
    np.testing.assert_allclose(stretch.low, low, atol=2)
    np.testing.assert_allclose(stretch.high, high, atol=2)
    assert not patch.valid[:, :150].any()
    assert (patch.pixels[:, :150] == PADDING_RGB).all()
    assert 110 < patch.pixels[:, 150:].mean() < 145


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_number_are_gaps(tmp_path, value):
    pixels = RNG.normal(0, 1, (40, 50, 3)).astype(np.float32)
    pixels[:10] = value
    pixels[20, 20, 1] = value
    with Scene(write_tif(tmp_path / "s.tif", pixels)) as scene:
        patch = whole(scene)
    assert not patch.valid[:10].any()
    assert patch.valid[10:].all()
    assert (patch.pixels[:10] == PADDING_RGB).all()
    assert patch.pixels[20, 20, 1] == PADDING_RGB[1]


def test_black_in_one_band_is_no_gap_where_nodata_is_0(tmp_path):
    pixels = np.full((10, 10, 3), 80, np.uint8)
    pixels[2, 2] = 0, 12, 30
    pixels[4, 4] = 0
    with Scene(write_tif(tmp_path / "s.tif", pixels, nodata=0)) as scene:
        patch = whole(scene)
    assert patch.pixels[2, 2].tolist() == [0, 12, 30]
    assert patch.pixels[4, 4].tolist() == list(PADDING_RGB)
    assert int((~patch.valid).sum()) == 1


def test_nodata_can_be_said_by_the_user(tmp_path):
    pixels = np.full((10, 10), 80, np.uint8)
    pixels[:3] = 1
    with Scene(write_tif(tmp_path / "s.tif", pixels), nodata=1.0) as scene:
        assert whole(scene).valid.sum() == 70


def test_an_array_reads_like_the_file(tmp_path):
    pixels = noise(50, 70, dtype=np.uint16)
    path = write_tif(tmp_path / "s.tif", pixels)
    with Scene(path) as file, Scene(pixels) as array:
        np.testing.assert_array_equal(whole(file).pixels, whole(array).pixels)
        assert array.info.georeference is None


def test_overview_is_the_scene_thinned(tmp_path):
    smooth = np.add.outer(np.linspace(0, 120, 300), np.linspace(0, 120, 400)).astype(np.uint8)
    with Scene(write_tif(tmp_path / "s.tif", smooth)) as scene:
        thinned = scene.overview(100).pixels
    assert thinned.shape == (75, 100, 3)
    expected = np.asarray(Image.fromarray(smooth).resize((100, 75), Image.Resampling.BOX))
    assert np.abs(thinned[..., 0].astype(int) - expected).max() <= 2


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
@pytest.mark.parametrize("via", ["file", "vrt"])
def test_an_overview_of_another_picture_is_not_shown(tmp_path, layout, via):
    """Pixels written after the overviews were built; a VRT reads those of its sources."""
    pixels = noise(300, 400)
    path = write_tif(tmp_path / "s.tif", np.zeros_like(pixels), **layout)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
        dataset.write(pixels.transpose(2, 0, 1))
    if via == "vrt":
        rasterio.shutil.copy(path, tmp_path / "s.vrt", driver="VRT")
        path = tmp_path / "s.vrt"
    with Scene(path) as scene:
        shown = scene.overview(100).pixels
        part = scene.overview(100, within=Window(64, 128, 100, 200)).pixels
    expected = np.asarray(Image.fromarray(pixels).resize((100, 75), Image.Resampling.BOX))
    assert np.abs(shown.astype(int) - expected).max() <= 2
    np.testing.assert_array_equal(part[16:41, 32:82], shown[16:41, 32:82])
    assert (np.delete(part, np.s_[16:41], axis=0) == PADDING_RGB).all()
    assert (np.delete(part, np.s_[32:82], axis=1) == PADDING_RGB).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_tiny_scenes(tmp_path, size):
    pixels = noise(*size)
    with Scene(write_tif(tmp_path / "s.tif", pixels)) as scene:
        np.testing.assert_array_equal(whole(scene).pixels, pixels)
        tiles = list(read_tiles(scene, TileGrid(scene.size, (64, 64), 8)))
        assert all(tile.patch.pixels.shape == (64, 64, 3) for tile in tiles)
        assert scene.overview(64).pixels.shape[:2] == (min(64, size[0]), min(64, size[1]))


def test_each_row_of_a_strip_file_is_read_once(tmp_path, monkeypatch):
    pixels = noise(200, 90)
    path = write_tif(tmp_path / "s.tif", pixels, blockysize=8)
    with Scene(path) as scene:
        rows, starts = [], []
        read = scene._raster.read

        def watched(bands, window, **options):
            rows.extend(range(window.top, window.bottom))
            starts.append(window.top)
            return read(bands, window, **options)

        monkeypatch.setattr(scene._raster, "read", watched)
        for tile in read_tiles(scene, TileGrid(scene.size, (64, 64), 20)):
            window = tile.window
            np.testing.assert_array_equal(
                tile.patch.pixels, pixels[window.top : window.bottom, window.left : window.right]
            )
    assert sorted(rows) == list(range(200))
    assert all(start % 8 == 0 for start in starts)  # no strip is decoded for a part of it


def test_bad_files_say_what_is_wrong(tmp_path):
    with pytest.raises(SceneError, match=r"There is no scene .*none\.tif"):
        Scene(tmp_path / "none.tif")
    with pytest.raises(SceneError, match="is a folder, not a scene"):
        Scene(tmp_path)
    (tmp_path / "text.tif").write_text("hello, I am a text")
    with pytest.raises(SceneError, match=r"text\.tif is not a raster that can be read"):
        Scene(tmp_path / "text.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(SceneError, match=r"empty\.tif is not a raster"):
        Scene(tmp_path / "empty.tif")
    with pytest.raises(UsageError, match="the lower first: got 5 5"):
        Scene(noise(4, 4), scale_range=(5.0, 5.0))
    with pytest.raises(SceneError, match=r"The array is not a scene: got bool \[4, 4\]"):
        Scene(np.ones((4, 4), bool))


def test_a_container_of_rasters_says_so(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = tmp_path / "two.gpkg"
        for table in ("a", "b"):
            with rasterio.open(
                path,
                "w",
                driver="GPKG",
                width=8,
                height=8,
                count=1,
                dtype="uint8",
                crs="EPSG:3857",
                transform=Affine(1, 0, 0, 0, -1, 0),
                RASTER_TABLE=table,
                APPEND_SUBDATASET="YES" if table == "b" else "NO",
            ) as dataset:
                dataset.write(np.ones((1, 8, 8), np.uint8))
        with pytest.raises(SceneError, match=r"has no bands; it contains 2 subdatasets"):
            Scene(path)


@pytest.mark.parametrize("layout", [{"blockysize": 8}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_truncated_file_gives_what_is_left_and_names_the_rest(tmp_path, layout, dtype):
    pixels = noise(256, 256, bands=1, dtype=dtype)
    path = write_tif(tmp_path / "s.tif", pixels, **layout)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with Scene(path) as scene:
        tiles = list(read_tiles(scene, TileGrid(scene.size, (64, 64), 0)))
        assert scene.overview(64).valid.any()
    problems = [tile.problem for tile in tiles if tile.patch is None]
    assert 4 <= len(problems) <= 8
    assert "cannot be read at rows" in problems[0]
    good = [tile for tile in tiles if tile.patch is not None]
    assert len(good) + len(problems) == 16
    if dtype == np.uint8:
        for tile in good:
            window = tile.window
            cut = pixels[window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(tile.patch.pixels, np.repeat(cut, 3, axis=2))


def test_a_file_without_a_readable_pixel_is_refused_where_percentiles_are_needed(tmp_path):
    path = write_tif(tmp_path / "s.tif", noise(256, 256, bands=1, dtype=np.uint16), blockysize=256)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(SceneError, match=r"cannot be read at rows .*The file may be truncated"):
        Scene(path)


def test_gcps_are_a_georeference(tmp_path):
    points = [GroundControlPoint(row=r, col=c, x=10 + c / 100, y=50 - r / 100) for r in (0, 40) for c in (0, 50)]
    path = tmp_path / "s.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", height=40, width=50, count=1, dtype="uint8") as dataset:
            dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
            dataset.write(sea(40, 50, [])[None, ..., 0])
    with Scene(path) as scene:
        georeference = scene.info.georeference
    np.testing.assert_allclose(georeference.to_lonlat(np.array([[25.0, 10.0]])), [[10.25, 49.9]], atol=1e-9)


@real
@pytest.mark.shared_data
@pytest.mark.parametrize("path", sorted(REAL.glob("*.tif")), ids=lambda path: path.stem)
def test_real_rasters(path):
    with Scene(path) as scene, rasterio.open(path) as dataset:
        assert scene.info.stretch.rule == "percentiles 2-98"
        assert scene.info.georeference.lonlat_problem(scene.size) is None
        grid = TileGrid(scene.size, (256, 256), 64)
        low, high = scene.info.stretch.low[0], scene.info.stretch.high[0]
        for tile in list(read_tiles(scene, grid))[:: max(1, len(grid) // 9)]:
            window = tile.window
            values = dataset.read(1, window=rasterio.windows.Window(window.left, window.top, 256, 256)).astype(float)
            mask = dataset.read_masks(1, window=rasterio.windows.Window(window.left, window.top, 256, 256)) > 0
            mask &= np.isfinite(values)
            np.testing.assert_array_equal(tile.patch.valid, mask)
            expected = np.rint(((values - low) / (high - low) * 255).clip(0, 255))
            np.testing.assert_allclose(tile.patch.pixels[mask, 0], expected[mask], atol=1)
        shown = scene.overview(256)
        assert 60 < shown.pixels[shown.valid].mean() < 190


def test_each_block_of_a_tiled_file_is_decoded_once(tmp_path):
    """Counted in bytes that this process reads: a block decoded twice is read twice."""
    pixels = noise(300, 500)
    path = write_tif(tmp_path / "s.tif", pixels, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    with rasterio.Env(GDAL_CACHEMAX=64 << 20), Scene(path) as scene:
        assert scene.caches_a_row_of_blocks
        opened = psutil.Process().io_counters().read_chars
        for tile in read_tiles(scene, TileGrid(scene.size, (90, 90), 20)):
            assert (tile.patch.pixels[: 300 - tile.window.top] == pixels[tile.window.top : tile.window.bottom,
                    tile.window.left : tile.window.right]).all()  # fmt: skip
        fetched = psutil.Process().io_counters().read_chars - opened
    assert fetched < 1.15 * path.stat().st_size


@pytest.mark.parametrize("cache_bytes", [64 << 20, 0])
def test_of_a_tiled_file_only_the_blocks_of_selected_tiles_are_read(tmp_path, monkeypatch, cache_bytes):
    """Each pixel that is read is in a column of blocks of a selected tile of this row, and is read once."""
    monkeypatch.setattr("deploy.scene.read.scene.CACHE_BYTES", cache_bytes)  # without a cache, whole blocks are read
    monkeypatch.setattr("deploy.scene.read.tile_reader.SECTION_PX", 64)
    pixels = noise(300, 1000)
    path = write_tif(tmp_path / "s.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    grid = TileGrid((300, 1000), (90, 90), 20)
    selected = np.random.default_rng(0).random(len(grid)) < 0.15
    needed, counts = np.zeros((300, 1000), bool), np.zeros((300, 1000), int)
    for index in np.flatnonzero(selected):
        window = list(grid)[index]
        left, right = window.left // 64 * 64, -(-window.right // 64) * 64
        top, bottom = (window.top, window.bottom) if cache_bytes else (window.top, -(-window.bottom // 64) * 64)
        needed[top:bottom, left:right] = True
    with Scene(path) as scene:
        read = scene._raster.read

        def watched(bands, window, **options):
            counts[window.top : window.bottom, window.left : window.right] += 1
            return read(bands, window, **options)

        monkeypatch.setattr(scene._raster, "read", watched)
        tiles = list(read_tiles(scene, grid, selected=selected))
    for tile in tiles:
        assert (tile.patch is not None) == selected[tile.index]
        if tile.patch is not None:
            window = tile.window
            part = pixels[window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(tile.patch.pixels[: part.shape[0], : part.shape[1]], part)
    assert counts.max() == 1
    assert not (counts.astype(bool) & ~needed).any()
    assert needed.mean() < 0.7
