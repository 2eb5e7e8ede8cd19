"""Bands and contrast stretch of images, equal in training and scenes."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from pydantic import ValidationError

from deploy.scene.read.scene import Scene
from export.bundle.manifest import InputSpec
from ifkd.core.errors import DataError, SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions, ValueSample, choose_stretch, to_rgb
from ifkd.imagery.image_files import read_image

RNG = np.random.default_rng(3)


def write(path: Path, pixels: np.ndarray, **profile) -> Path:
    bands = pixels if pixels.ndim == 3 else pixels[None]
    with (
        rasterio.Env(),
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=bands.shape[1],
            width=bands.shape[2],
            count=bands.shape[0],
            dtype=bands.dtype,
            **profile,
        ) as dataset,
    ):
        dataset.write(bands)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize(
    "imagery",
    [
        ImageryOptions(),
        ImageryOptions(limits=(10.0, 200.0)),
        ImageryOptions(percentiles=(0.0, 99.0), stretch_uint8=True, nodata=7.0),
    ],
    ids=["default", "given", "percentiles"],
)
def test_training_images_equal_scenes(tmp_path, dtype, bands, imagery):
    pixels = RNG.gamma(2.0, 40.0, (bands, 50, 70)).clip(0, 255).astype(dtype)
    path = write(tmp_path / "a.tif", pixels)
    with Scene(path, imagery=imagery) as scene:
        expected = scene.read(Window(0, 0, 50, 70)).pixels
    np.testing.assert_array_equal(read_image(path, imagery=imagery), expected)


def test_bands_are_selected_and_may_repeat(tmp_path):
    pixels = RNG.integers(0, 256, (5, 20, 30)).astype(np.uint8)
    path = write(tmp_path / "a.tif", pixels)
    for bands in [(5, 2, 1), (4,), (1, 2, 1)]:
        chosen = bands if len(bands) == 3 else bands * 3
        expected = pixels[[band - 1 for band in chosen]].transpose(1, 2, 0)
        np.testing.assert_array_equal(read_image(path, imagery=ImageryOptions(bands=bands)), expected)
    with pytest.raises(DataError, match=r"cannot be read from .*a\.tif: got 6, expected one or three of 1 2 3 4 5"):
        read_image(path, imagery=ImageryOptions(bands=(6,)))


def test_sixteen_bits_are_stretched_by_percentiles_and_saturate(tmp_path):
    pixels = RNG.gamma(2.0, 2000.0, (40, 60)).clip(0, 65535).astype(np.uint16)
    low, high = np.percentile(pixels, [2, 98])
    expected = np.rint(((pixels - low) / (high - low) * 255).clip(0, 255))
    got = read_image(write(tmp_path / "a.tif", pixels))
    np.testing.assert_array_equal(got[..., 0], expected)
    order = np.argsort(pixels.ravel(), kind="stable")
    assert (np.diff(got[..., 0].ravel()[order].astype(int)) >= 0).all()


def test_a_sixteen_bit_png_is_read(tmp_path):
    from PIL import Image

    pixels = RNG.integers(0, 65536, (12, 9)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", imagery=ImageryOptions(limits=(0.0, 65535.0)))
    np.testing.assert_array_equal(got[..., 1], np.rint(pixels / 257.0))


def test_gaps_have_the_padding_color_and_are_not_in_the_percentiles(tmp_path):
    pixels = np.full((1, 40, 40), 500.0, np.float32)
    pixels[0, :20] = RNG.normal(1000, 10, (20, 40))
    pixels[0, 20:30], pixels[0, 30:] = np.nan, -9999.0
    got = read_image(write(tmp_path / "a.tif", pixels, nodata=-9999.0))
    assert (got[20:] == PADDING_RGB).all()
    assert abs(float(got[:20].mean()) - 127.5) < 15


def test_limits_of_another_data_type_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", np.full((1, 8, 8), 90, np.uint8))
    with pytest.raises(DataError, match=r"8 bits, but the limits .* another data type: got 0 to 4000"):
        read_image(path, imagery=ImageryOptions(limits=(0.0, 4000.0)))
    with pytest.raises(SceneError, match="another data type"):
        Scene(path, imagery=ImageryOptions(limits=(0.0, 4000.0)))
    with Scene(path, imagery=ImageryOptions(limits=(0.0, 4000.0)), scale_range=(0.0, 180.0)) as scene:
        assert scene.read(Window(0, 0, 1, 1)).pixels[0, 0, 0] in {127, 128}


@pytest.mark.parametrize(
    "values",
    [
        {"bands": (1, 2)},
        {"bands": (0,)},
        {"limits": (5.0, 5.0)},
        {"limits": (0.0, np.inf)},
        {"percentiles": (2.0, 101.0)},
    ],
)
def test_invalid_options_are_refused(values):
    with pytest.raises(ValidationError):
        ImageryOptions(**values)


def test_constant_and_empty_bands_have_a_stretch():
    for values in (np.full(9, 4.0), np.zeros(0)):
        stretch = choose_stretch(
            ImageryOptions(), dtype="float32", bands=1, name="a", sample=lambda v=values: ValueSample((v,))
        )
        assert stretch.low[0] < stretch.high[0]
        assert (
            to_rgb(np.full((1, 2, 2), np.nan, np.float32), None, stretch)[0].tolist() == [[list(PADDING_RGB)] * 2] * 2
        )


def test_a_manifest_without_imagery_has_the_defaults():
    old = InputSpec.model_validate({"name": "tiles", "tile_px": [64, 64], "max_batch": 4, "scale": 0.5})
    assert old.imagery == ImageryOptions()
    new = old.model_copy(update={"imagery": ImageryOptions(bands=(1, 2, 1), limits=(0.0, 900.0))})
    assert InputSpec.model_validate_json(new.model_dump_json()) == new
