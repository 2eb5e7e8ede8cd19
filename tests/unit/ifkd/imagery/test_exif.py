"""Exif orientation: labels fit an image as stored or as displayed, and the stated size decides."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from ifkd.core.errors import DataError
from ifkd.imagery.exif import QUARTER_TURNS, exif_orientation, stored_corners
from ifkd.imagery.image_files import read_image

STORED = (20, 30)


def write(path: Path, orientation: int, size: tuple[int, int] = STORED) -> Image.Image:
    """Write noise with an Exif orientation, and return it as Pillow displays it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[3:8, 4:14] = 255
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_each_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    write(tmp_path / f"a.{suffix}", orientation)
    assert exif_orientation(tmp_path / f"a.{suffix}") == orientation


def test_files_without_an_orientation_are_upright(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert exif_orientation(tmp_path / "a.png") == 1
    assert write(tmp_path / "b.png", 77).size == STORED[::-1]
    assert exif_orientation(tmp_path / "b.png") == 1


@pytest.mark.parametrize("orientation", QUARTER_TURNS)
def test_the_size_of_the_labels_decides(tmp_path: Path, orientation: int) -> None:
    shown = np.asarray(write(tmp_path / "a.png", orientation))
    stored = read_image(tmp_path / "a.png", size=STORED)
    np.testing.assert_array_equal(stored, read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", size=STORED[::-1]), shown)
    with pytest.raises(DataError, match="does not have the size of its annotations"):
        read_image(tmp_path / "a.png", size=(20, 31))
    rows, columns = np.nonzero((shown == 255).all(axis=2))
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    assert stored_corners(box, orientation, STORED) == (4, 3, 14, 8)


@pytest.mark.parametrize(("orientation", "size"), [(2, STORED), (3, STORED), (4, STORED), (5, (20, 20)), (8, (20, 20))])
def test_refuses_an_image_whose_size_does_not_decide(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    write(tmp_path / "a.png", orientation, size)
    with pytest.raises(DataError, match=f"Exif orientation {orientation}: its labels may fit the image as stored"):
        read_image(tmp_path / "a.png", size=size)
    assert read_image(tmp_path / "a.png").shape == (*size, 3)


def test_a_png_without_metadata_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("the image was opened"))
    assert exif_orientation(tmp_path / "a.png") == 1


def test_an_orientation_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 6)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    rest, end = content[:start] + content[stop:], content.index(b"IEND") - 4 - (stop - start)
    (tmp_path / "b.png").write_bytes(rest[:end] + content[start:stop] + rest[end:])
    assert exif_orientation(tmp_path / "b.png") == exif_orientation(tmp_path / "a.png") == 6
