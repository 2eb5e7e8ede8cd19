"""Alpha bands and the order of red, green and blue, the same in scenes, training and slicing."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from deploy.scene.read.scene import Scene
from ifkd.core.errors import DataError, SceneError
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_pixels import read_window, write_tile
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions
from ifkd.imagery.image_files import open_image, read_image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SIZE = (80, 90)
RED, GREEN, BLUE = ColorInterp.red, ColorInterp.green, ColorInterp.blue
ALPHA, GRAY, UNDEFINED = ColorInterp.alpha, ColorInterp.gray, ColorInterp.undefined


def noise(bands: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(bands).integers(1, 250, (bands, *SIZE)).astype(dtype)


def write(path: Path, pixels: np.ndarray, roles: list[ColorInterp] | None = None, **profile: object) -> Path:
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype, **profile
    ) as dataset:
        if roles is not None:
            dataset.colorinterp = roles
        dataset.write(pixels)
    return path


def scene_pixels(path: Path, **options: object) -> np.ndarray:
    with Scene(path, **options) as scene:
        return scene.read(Window(0, 0, *SIZE)).pixels


def image(pixels: np.ndarray) -> np.ndarray:
    return pixels[:3].transpose(1, 2, 0)


@pytest.mark.parametrize("land", [200, 90])
def test_near_infrared_that_gdal_declares_as_alpha_is_a_band(tmp_path: Path, land: int) -> None:
    pixels = noise(4)
    pixels[3] = np.where(pixels[0] < 120, 0, land)
    path = write(tmp_path / "a.tif", pixels)
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == ALPHA
    np.testing.assert_array_equal(scene_pixels(path), image(pixels))
    np.testing.assert_array_equal(read_image(path), image(pixels))
    np.testing.assert_array_equal(scene_pixels(path, bands=(4, 3, 2)), pixels[[3, 2, 1]].transpose(1, 2, 0))
    with Scene(path) as scene:
        assert "Band 4 of a.tif is declared as alpha, but its values are no mask" in scene.info.remarks[0]
        assert scene.overview(40).pixels.min() > 0
    with closing(open_image(path)) as raster:
        assert raster.bands == (1, 2, 3, 4)


def test_near_infrared_of_water_alone_is_no_gap(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[3] = 0
    path = write(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(read_image(path), image(pixels))
    pixels[:3] = 0
    empty = write(tmp_path / "empty.tif", pixels)
    assert (read_image(empty) == PADDING_RGB).all()


@pytest.mark.parametrize(
    ("dtype", "opaque"), [("uint8", 255), ("uint16", 65535), ("uint16", 4095), ("float32", 255), ("float32", 1)]
)
@pytest.mark.parametrize("roles", [[RED, GREEN, BLUE, UNDEFINED, ALPHA], [ALPHA, GRAY], [RED, GREEN, BLUE, ALPHA]])
@pytest.mark.parametrize("nodata", [None, 251])
def test_alpha_masks_whatever_its_place(
    tmp_path: Path, dtype: str, opaque: int, roles: list[ColorInterp], nodata: float | None
) -> None:
    """GDAL itself takes it for a mask only as the second or fourth and last band, and not beside a nodata value."""
    pixels = noise(len(roles), dtype)
    pixels[roles.index(ALPHA)] = np.where(np.arange(SIZE[1]) < 30, 0, opaque)
    path = write(tmp_path / "a.tif", pixels, roles, photometric="MINISBLACK", nodata=nodata)
    imagery = ImageryOptions(limits=(0.0, 255.0))
    got = scene_pixels(path, imagery=imagery)
    assert (got[:, :30] == PADDING_RGB).all()
    colors = pixels[[band for band, role in enumerate(roles) if role != ALPHA]]
    expected = image(colors if len(colors) >= 3 else colors[[0, 0, 0]])
    np.testing.assert_array_equal(got[:, 30:], expected[:, 30:])
    np.testing.assert_array_equal(read_image(path, imagery=imagery), got)


def test_a_mask_over_various_colors_is_kept_and_reported(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[3] = np.where(np.arange(SIZE[1]) < 30, 0, 255)
    path = write(tmp_path / "a.tif", pixels)
    with Scene(path) as scene:
        assert not scene.read(Window(0, 0, 80, 30)).valid.any()
        assert scene.info.alpha == 4
        (remark,) = scene.info.remarks
    assert "hides about 33% of the pixels, which have various colors" in remark
    assert "--alpha none" in remark
    pixels[:3, :, :30] = 0
    with Scene(write(tmp_path / "black.tif", pixels)) as scene:
        assert scene.info.remarks == ()


@pytest.mark.parametrize("kind", ["file", "array"])
def test_alpha_can_be_chosen(tmp_path: Path, kind: str) -> None:
    pixels = noise(4)
    pixels[3] = np.where(np.arange(SIZE[1]) < 30, 0, 255)
    source = write(tmp_path / "a.tif", pixels) if kind == "file" else pixels.transpose(1, 2, 0)
    np.testing.assert_array_equal(scene_pixels(source, alpha="none"), image(pixels))
    assert (scene_pixels(source, alpha=4)[:, :30] == PADDING_RGB).all()
    with Scene(source, alpha=1) as scene:
        assert scene.info.bands == (2, 3, 4)
    with pytest.raises(SceneError, match="does not have this alpha band: got 5, expected 1 to 4, or none"):
        Scene(source, alpha=5)
    if kind == "file":
        np.testing.assert_array_equal(read_image(source, imagery=ImageryOptions(alpha="none")), image(pixels))
        with pytest.raises(DataError, match="does not have this alpha band"):
            read_image(source, imagery=ImageryOptions(alpha=5))


def test_bands_that_are_chosen_are_not_alpha(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[3] = np.where(np.arange(SIZE[1]) < 30, 0, 255)
    path = write(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(scene_pixels(path, bands=(4, 3, 2)), pixels[[3, 2, 1]].transpose(1, 2, 0))


def test_soft_borders_are_a_mask_and_a_png_always_has_one(tmp_path: Path) -> None:
    pixels = noise(4)
    pixels[3] = np.clip((np.arange(SIZE[1]) - 30) * 60, 0, 255)
    pixels[:3, :, :30] = 0
    with Scene(write(tmp_path / "a.tif", pixels)) as scene:
        assert scene.info.alpha == 4
    pixels[3] = np.arange(SIZE[1])
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
    with Scene(tmp_path / "a.png") as scene:
        assert scene.info.alpha == 4


@pytest.mark.parametrize(
    ("roles", "rgb"),
    [
        ([BLUE, GREEN, RED], (3, 2, 1)),
        ([BLUE, GREEN, RED, ColorInterp.nir], (3, 2, 1)),
        ([ColorInterp.coastal, BLUE, GREEN, RED], (4, 3, 2)),
        ([UNDEFINED, RED, GREEN, BLUE], (2, 3, 4)),
        ([RED, RED, GREEN, BLUE], (1, 2, 3)),
        ([BLUE, GREEN, UNDEFINED], (1, 2, 3)),
        ([GRAY, UNDEFINED, UNDEFINED], (1, 2, 3)),
        ([GREEN, RED], (1,)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_declared_colors_are_red_green_and_blue(
    tmp_path: Path, roles: list[ColorInterp], rgb: tuple[int, ...], dtype: str
) -> None:
    """In scenes, training and tiles; an explicit choice of bands is kept."""
    pixels = noise(len(roles), dtype)
    path = write(tmp_path / "a.tif", pixels, roles, photometric="MINISBLACK")
    imagery = ImageryOptions(limits=(0.0, 255.0))
    expected = image(pixels[[band - 1 for band in (rgb if len(rgb) == 3 else rgb * 3)]])
    np.testing.assert_array_equal(scene_pixels(path, imagery=imagery), expected)
    np.testing.assert_array_equal(read_image(path, imagery=imagery), expected)
    np.testing.assert_array_equal(scene_pixels(path, imagery=imagery, bands=(2,)), image(pixels[[1, 1, 1]]))
    with closing(open_image(path)) as raster:
        window = Window(8, 4, 64, 64)
        write_tile(tmp_path / "tile.tif", raster, window, *read_window(raster, window))
    np.testing.assert_array_equal(read_image(tmp_path / "tile.tif", imagery=imagery), expected[8:72, 4:68])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.tif", "tile.tif"]
