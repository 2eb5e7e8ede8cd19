"""Pixels of image files as detectors take them: uint8, three channels, at the recipe's scale."""

import os
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from ifkd.core.detections import Array
from ifkd.core.errors import DataError, SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import PADDING_RGB, Imagery, choose_bands, choose_scaling, sample, to_rgb
from ifkd.imagery.raster import Raster, RasterArray, RasterFile

__all__ = ["PADDING_RGB", "Imagery", "open_image", "pad", "read_image", "resize"]

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""How files of these formats begin; names may say anything."""
PNG_END, PNG_END_BYTES = b"IEND\xaeB`\x82", 4096
"""A PNG's last words, and how far before the file's end they may stand."""
SMALL_FORMATS = (b"BM", b"GIF8")
"""BMP and GIF, which Pillow reads more forgivingly than GDAL."""
DRIVERS = ("GTiff", "PNG", "JPEG", "BMP", "GIF", "JP2OpenJPEG", "ENVI", "HFA", "NITF")
"""GDAL's formats for training images: pixels only, none that names other files."""


def read_image(path: Path, *, size: tuple[int, int] | None = None, imagery: Imagery | None = None) -> Array:
    """Return an image file as uint8 [height, width, 3]; one channel is repeated, what is not valid is padding.

    Args:
        path: The file: JPEG, PNG, GeoTIFF and other formats of GDAL, of any number of bands and any type.
        size: When given, the (height, width) it must have.
        imagery: Which bands, and how values become uint8.

    Raises:
        DataError: The file is absent, broken, too large, has not the bands wanted or is of another size.
    """
    imagery = imagery or Imagery()
    head = _head(path)
    try:
        if head.startswith(JPEG) and _is_plain(imagery):
            return _read_jpeg(path, size, imagery)
        if (head.startswith(SMALL_FORMATS) or _is_narrow_png(head)) and _is_plain(imagery):
            return _read_small(path, size, imagery)
        return _read_raster(path, size, imagery)
    except _BrokenError as error:
        raise DataError(f"{path} is not an image that can be read ({error})") from error


def open_image(path: Path, *, nodata: float | None = None) -> Raster:
    """Return an image file of any size, open for reading its values window by window.

    Formats that only come small, and must be read whole, are held in memory.

    Args:
        path: The file, of the formats that `read_image` takes.
        nodata: The value that means "no data", where the file does not say.

    Raises:
        DataError: The file is absent or broken.
    """
    head = _head(path)
    if head.startswith(SMALL_FORMATS) or _is_narrow_png(head):
        return RasterArray(read_image(path), nodata=nodata)
    try:
        if head.startswith(PNG):
            _check_png_end(path)
        return _open_raster(path, nodata)
    except _BrokenError as error:
        raise DataError(f"{path} is not an image that can be read ({error})") from error


class _BrokenError(Exception):
    """A reader gave up on a file; its caller names it."""


def resize(pixels: Array, size: tuple[int, int]) -> Array:
    """Return uint8 pixels [height, width, 3] at another (height, width): bilinear, averaging when shrinking.

    Training, evaluation and scenes all scale by this function, so that they cannot disagree.
    """
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def pad(pixels: Array, size: tuple[int, int]) -> Array:
    """Return `pixels` in the top left of a canvas of (height, width) filled with the mean color."""
    if pixels.shape[:2] == size:
        return pixels
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = PADDING_RGB
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}", hint="Check the image folder of the recipe.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not an image that can be read ({error})") from error
    if not head:
        raise DataError(f"{path} is not an image that can be read (it is empty)")
    return head


def _is_plain(imagery: Imagery) -> bool:
    """Return whether 8-bit pixels are taken as they are."""
    return imagery.bands is None and imagery.limits is None and imagery.nodata is None and not imagery.stretch_uint8


def _is_narrow_png(head: bytes) -> bool:
    """Return whether a PNG has 1, 2 or 4 bits, which GDAL leaves unscaled."""
    return head.startswith(PNG) and len(head) > 24 and head[24] < 8


def _check_png_end(path: Path) -> None:
    """Refuse a PNG that was cut, which GDAL reads as far as it goes."""
    with path.open("rb") as stream:
        stream.seek(-min(PNG_END_BYTES, path.stat().st_size), os.SEEK_END)
        if PNG_END not in stream.read():
            raise _BrokenError("it ends before its last part")


def _check_size(path: Path, found: tuple[int, int], size: tuple[int, int] | None, imagery: Imagery) -> None:
    """Refuse an image by its header, before it is decoded."""
    if found[0] * found[1] > imagery.max_pixels:
        raise DataError(
            f"{path} is larger than an image for training may be",
            got=f"{found[1]}x{found[0]} (width x height)",
            expected=f"at most {imagery.max_pixels} pixels (data.imagery.max_pixels)",
            hint="Cut it with `ifkd data slice`, or raise the limit.",
        )
    if size is not None and found != size:
        raise DataError(
            f"{path} is not the image its annotations describe",
            got=f"{found[1]}x{found[0]} (width x height)",
            expected=f"{size[1]}x{size[0]}",
        )


def _read_jpeg(path: Path, size: tuple[int, int] | None, imagery: Imagery) -> Array:
    try:
        content = path.read_bytes()
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        _check_size(path, (height, width), size, imagery)
        if colors in {"CMYK", "YCCK"}:
            return _read_raster(path, size, imagery)
        pixels: Array = simplejpeg.decode_jpeg(content, "RGB")
    except (OSError, ValueError) as error:
        raise _BrokenError(error) from error
    return pixels


def _read_small(path: Path, size: tuple[int, int] | None, imagery: Imagery) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
            with Image.open(path) as image:
                _check_size(path, (image.height, image.width), size, imagery)
                return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise _BrokenError(error) from error


def _open_raster(path: Path, nodata: float | None) -> RasterFile:
    try:
        return RasterFile(path, nodata=nodata, drivers=DRIVERS)
    except SceneError as error:
        raise _BrokenError(error.problem) from error


def _read_raster(path: Path, size: tuple[int, int] | None, imagery: Imagery) -> Array:
    raster = _open_raster(path, imagery.nodata)
    try:
        _check_size(path, raster.size, size, imagery)
        if raster.driver == "PNG":
            _check_png_end(path)
        try:
            bands = choose_bands(raster.bands, imagery, name=str(path))
            scaling = choose_scaling(
                imagery,
                dtype=raster.dtype,
                bands=len(bands),
                name=str(path),
                sample=lambda: sample(
                    lambda window, shape: raster.read(bands, window, shape=shape), raster.size, bands=len(bands)
                ),
            )
        except SceneError as error:
            raise DataError(error.problem, got=error.got, expected=error.expected, hint=error.hint) from error
        try:
            values, valid = raster.read(bands, Window(0, 0, *raster.size))
        except SceneError as error:
            raise _BrokenError(error.problem) from error
        return to_rgb(values, valid, scaling)[0]
    finally:
        raster.close()
