"""Pixels of files, as detectors take them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifkd.data.imagery import PADDING_RGB, pad, read_image, resize
from ifkd.errors import DataError


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_pixels_are_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(noise()).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", size=(20, 30)), noise())


def test_one_channel_is_repeated_and_alpha_dropped(tmp_path: Path) -> None:
    grey = noise()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, axis=2))
    Image.fromarray(np.dstack([noise(), grey])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), noise())


def test_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no image .*a\.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    refused = 0
    cuts = sorted({0, 1, 10, 30, 60, len(whole) // 3, len(whole) // 2, len(whole) * 9 // 10})
    for length in cuts:
        path.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader may complain of metadata before it gives up
            with pytest.raises(DataError, match=f"cut.{suffix} is not an image that can be read"):
                read_image(path)
        refused += 1
    assert refused == len(cuts)


@pytest.mark.parametrize("seed", range(8))
def test_a_scrambled_file_is_read_or_refused(tmp_path: Path, seed: int) -> None:
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


def test_another_size_than_the_annotations_say(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"got 30x20 \(width x height\), expected 20x30"):
        read_image(tmp_path / "a.png", size=(30, 20))


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected 8 bits"):
        read_image(tmp_path / "a.png")


def test_an_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="is larger than an image for training may be"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="is larger than an image for training may be"):
        read_image(tmp_path / "a.png")


def test_resize_keeps_means_and_shape() -> None:
    pixels = noise(40, 60)
    assert resize(pixels, (40, 60)) is pixels
    half = resize(pixels, (20, 30))
    assert half.shape == (20, 30, 3)
    assert abs(half.mean() - pixels.mean()) < 1
    steps = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(10, axis=0)
    doubled = resize(steps, (20, 60))
    assert (np.diff(doubled[0, :, 0].astype(int)) >= 0).all()
    assert doubled.shape == (20, 60, 3)


def test_shrinking_averages_what_it_covers() -> None:
    checks = np.indices((32, 32)).sum(axis=0)[:, :, None] % 2 * np.array([200, 100, 50])
    small = resize(checks.astype(np.uint8), (4, 4))
    assert np.abs(small.astype(int) - [100, 50, 25]).max() <= 2


def test_pad_fills_the_right_and_bottom_with_the_mean_colour() -> None:
    pixels = noise()
    assert pad(pixels, (20, 30)) is pixels
    padded = pad(pixels, (32, 64))
    np.testing.assert_array_equal(padded[:20, :30], pixels)
    assert (padded[20:] == PADDING_RGB).all()
    assert (padded[:, 30:] == PADDING_RGB).all()
