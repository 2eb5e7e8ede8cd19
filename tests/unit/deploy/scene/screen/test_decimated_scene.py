"""Scenes at the resolution of a screen, compared with Pillow's resizing of the entire picture."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from fakes.fake_scene import write_tif
from PIL import Image
from rasterio.enums import Resampling

from deploy.scene.read.scene import Scene
from deploy.scene.screen.decimated_scene import DecimatedScene
from ifkd.core.tiling import Window
from ifkd.imagery.image_files import resize


def textured(height=512, width=768, seed=0):
    """Return noise with bright dots, of which nearest neighbors lose most."""
    pixels = np.random.default_rng(seed).integers(0, 120, (height, width, 3), np.uint8)
    pixels[5::37, 7::41] = 255
    return pixels


def write_cog(path, pixels, resampling):
    plain = write_tif(path.with_name("plain.tif"), pixels, tiled=True, blockxsize=128, blockysize=128)
    rasterio.shutil.copy(plain, path, driver="COG", blocksize=128, overview_resampling=resampling)
    return path


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 6.4])
def test_windows_together_are_the_picture_as_training_resizes_it(factor):
    pixels = textured(512, 768)
    size = round(512 / factor), round(768 / factor)
    expected = resize(pixels, size).astype(int)
    with Scene(pixels) as scene, DecimatedScene(scene, factor) as decimated:
        assert decimated.reduction == 1.0
        whole = decimated.read(Window(0, 0, *size))
        parts = [[decimated.read(Window(top, left, 40, 40)) for left in (0, 40)] for top in (0, 40)]
    inner = np.s_[2:-2, 2:-2]  # at the border, the padding of the scene is seen
    assert np.abs(whole.pixels[inner] - expected[inner]).max() <= 1
    joined = np.concatenate([np.concatenate([one.pixels for one in row], axis=1) for row in parts])
    np.testing.assert_array_equal(joined, whole.pixels[:80, :80])
    assert whole.valid.all()


@pytest.mark.parametrize(("resampling", "reduction"), [("average", 4.0), ("cubic", 4.0), ("nearest", 1.0)])
def test_overviews_are_read_unless_they_are_nearest_neighbors(tmp_path, resampling, reduction):
    pixels = textured()
    path = write_cog(tmp_path / "cog.tif", pixels, resampling)
    with Scene(path) as scene, DecimatedScene(scene, 4.0) as decimated, DecimatedScene(scene, 1.5) as fine:
        assert (decimated.reduction, fine.reduction) == (reduction, 1.0)
        window = Window(2, 2, 120, 180)
        found = decimated.read(window).pixels
        with Scene(pixels) as plain, DecimatedScene(plain, 4.0) as full:
            expected = full.read(window).pixels
    assert np.abs(found.astype(int) - expected).mean() < (20 if reduction > 1 else 0.001)


def test_overviews_of_a_file_that_may_have_changed_are_not_read(tmp_path):
    path = write_tif(tmp_path / "a.tif", textured())
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    with Scene(path) as scene:
        assert scene.overview_sizes == ()
    with Scene(write_cog(tmp_path / "b.tif", textured(), "average")) as scene:
        assert scene.overview_sizes[:2] == ((256, 384), (128, 192))


@pytest.mark.parametrize("is_cog", [False, True])
def test_parts_without_data_are_not_valid(tmp_path, is_cog):
    pixels = np.full((512, 512), 700, np.uint16)
    pixels[:, 256:] = 0
    path = write_tif(tmp_path / "a.tif", pixels, nodata=0, tiled=True, blockxsize=128, blockysize=128)
    if is_cog:
        rasterio.shutil.copy(path, tmp_path / "b.tif", driver="COG", blocksize=128, overview_resampling="average")
        path = tmp_path / "b.tif"
    with Scene(path, scale_range=(0.0, 1000.0)) as scene, DecimatedScene(scene, 4.0) as decimated:
        patch = decimated.read(Window(0, 0, 128, 128))
        assert patch.valid[:, :63].all()
        assert not patch.valid[:, 66:].any()
        assert set(patch.pixels[2:-2, 2:62].ravel().tolist()) == {178}


@pytest.mark.parametrize("shape", ["rectangle", "triangle", "nothing"])
@pytest.mark.parametrize("factor", [2.5, 4.0])
def test_validity_is_that_of_a_resized_mask(tmp_path, shape, factor):
    """Also where strips reach beyond the scene, and of rectangles, whose rows and columns are resized alone."""
    pixels = np.full((300, 300), 700, np.uint16)
    if shape == "nothing":
        pixels[:] = 0
    elif shape == "triangle":
        pixels[np.tril_indices(300)] = 0
    else:
        pixels[:37] = pixels[:, 133:] = 0
    path = write_tif(tmp_path / "a.tif", pixels, nodata=0)
    padding, size = round(40 * factor), round(120 * factor)
    mask = np.zeros((size + 2 * padding, size + 2 * padding), np.uint8)
    mask[padding : padding + 300, padding : padding + 300] = (pixels > 0) * 255
    expected = np.asarray(Image.fromarray(mask).resize((200, 200), Image.Resampling.BILINEAR)) > 0
    with Scene(path, scale_range=(0.0, 1000.0)) as scene, DecimatedScene(scene, factor) as decimated:
        found = decimated.read(Window(-40, -40, 200, 200)).valid
    np.testing.assert_array_equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])
