"""Images are read, resized and padded."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifkd.core.errors import DataError
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions
from ifkd.imagery.image_files import pad, read_image, resize


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_pixels_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(noise()).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", size=(20, 30)), noise())


def test_one_channel_is_repeated_and_alpha_dropped(tmp_path: Path) -> None:
    gray = noise()[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[:, :, None], 3, axis=2))
    Image.fromarray(np.dstack([noise(), gray])).save(tmp_path / "alpha.png")
    expected = np.where(gray[:, :, None] > 0, noise(), np.array(PADDING_RGB, np.uint8))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), expected)


def test_a_jpeg_is_decoded_as_pillow_decodes_it(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(80), np.arange(120))[:, :, None] + np.array([0, 20, 40])
    for name, pixels in (("rgb", smooth), ("gray", smooth[:, :, 0])):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.jpg", quality=90)
        with Image.open(tmp_path / f"{name}.jpg") as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.jpg"), expected)


def test_a_png_of_one_bit_is_scaled(tmp_path: Path) -> None:
    bits = noise()[:, :, 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 0], bits * 255)


def test_a_vrt_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "secret.tif")
    band = '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">secret.tif'
    vrt = f'<VRTDataset rasterXSize="30" rasterYSize="20">{band}</SourceFilename></SimpleSource></VRTRasterBand>'
    (tmp_path / "a.png").write_text(vrt + "</VRTDataset>")
    with pytest.raises(DataError, match=r"a\.png is not an image that can be read"):
        read_image(tmp_path / "a.png")


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no image .*a\.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
def test_a_truncated_file_is_refused_with_its_name(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / f"complete.{suffix}")
    complete = (tmp_path / f"complete.{suffix}").read_bytes()
    path = tmp_path / f"truncated.{suffix}"
    refused = 0
    lengths = sorted({0, 1, 10, 30, 60, len(complete) // 3, len(complete) // 2, len(complete) * 9 // 10})
    for length in lengths:
        path.write_bytes(complete[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata before the error
            with pytest.raises(DataError, match=f"truncated.{suffix} is not an image that can be read"):
                read_image(path)
        refused += 1
    assert refused == len(lengths)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    for suffix in ("png", "jpg", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise(32, 32)).save(path)
        content = bytearray(path.read_bytes())
        for place in random.integers(0, len(content), 40):
            content[place] = int(random.integers(256))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = read_image(path)
            except DataError:
                continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_a_size_that_differs_from_the_annotations_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"got 30x20 \(width x height\), expected 20x30"):
        read_image(tmp_path / "a.png", size=(30, 20))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(300, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4] if suffix != "tif" else path.read_bytes())
    with pytest.raises(DataError, match="is too large for a training image: got 200x300"):
        read_image(path, imagery=ImageryOptions(max_pixels=59_999))  # the rest of the file is missing


def test_a_png_header_with_a_large_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="is too large for a training image: got 60000x60000"):
        read_image(tmp_path / "a.png")


def test_resize_keeps_means_and_shape() -> None:
    pixels = noise(40, 60)
    assert np.shares_memory(resize(pixels, (40, 60)), pixels)
    half = resize(pixels, (20, 30))
    assert half.shape == (20, 30, 3)
    assert abs(half.mean() - pixels.mean()) < 1
    steps = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(10, axis=0)
    doubled = resize(steps, (20, 60))
    assert (np.diff(doubled[0, :, 0].astype(int)) >= 0).all()
    assert doubled.shape == (20, 60, 3)


def test_shrinking_averages_pixels() -> None:
    checks = np.indices((32, 32)).sum(axis=0)[:, :, None] % 2 * np.array([200, 100, 50])
    small = resize(checks.astype(np.uint8), (4, 4))
    assert np.abs(small.astype(int) - [100, 50, 25]).max() <= 2


def test_pad_fills_the_right_and_bottom_with_the_padding_color() -> None:
    pixels = noise()
    assert pad(pixels, (20, 30)) is pixels
    padded = pad(pixels, (32, 64))
    np.testing.assert_array_equal(padded[:20, :30], pixels)
    assert (padded[20:] == PADDING_RGB).all()
    assert (padded[:, 30:] == PADDING_RGB).all()
