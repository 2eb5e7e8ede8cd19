"""Read image files as uint8 RGB, resize and pad them."""

import os
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from ifkd.core.detections import Array
from ifkd.core.errors import DataError, SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import PADDING_RGB, ImageryOptions, choose_stretch, select_bands, to_rgb
from ifkd.imagery.exif import PNG, UPRIGHT, displayed, exif_orientation, fits_displayed
from ifkd.imagery.raster import Raster, RasterArray, RasterFile
from ifkd.imagery.value_sample import sample_values

JPEG = b"\xff\xd8\xff"
"""First bytes of a JPEG."""
JPEG_END = b"\xff\xd9"
PNG_END, PNG_END_BYTES = b"IEND\xaeB`\x82", 4096
"""Last chunk of a PNG, and the number of bytes at the end of the file that contain it."""
SMALL_FORMATS = (b"BM", b"GIF8")
"""First bytes of BMP and GIF, of which Pillow reads more variants than GDAL."""
DRIVERS = ("GTiff", "PNG", "JPEG", "BMP", "GIF", "JP2OpenJPEG", "WEBP", "ENVI", "HFA", "NITF")
"""GDAL formats of training images; formats that refer to other files are excluded."""


def read_image(path: Path, *, size: tuple[int, int] | None = None, imagery: ImageryOptions | None = None) -> Array:
    """Return an image as uint8 [height, width, 3], with invalid pixels in the padding color.

    `size` is the (height, width) that its labels state. Without one, and where it is the stored one, the image is as
    stored; where it is that of the image as its Exif orientation displays it, the image is as displayed.

    Raises:
        DataError: The file is missing, damaged, too large, of another size, or does not have the bands; or its size
            does not show whether the labels fit the stored or the displayed image.
    """
    imagery = imagery or ImageryOptions()
    head = _head(path)
    orientation = UPRIGHT if size is None else exif_orientation(path)
    if orientation == UPRIGHT:
        return _read(path, head, size, imagery)
    pixels = _read(path, head, None, imagery)
    stored = (pixels.shape[0], pixels.shape[1])
    turned = fits_displayed(orientation, stored, size)
    _check_size(path, stored[::-1] if turned else stored, size, imagery)
    if turned is None:
        raise orientation_unclear(path, orientation)
    return displayed(pixels, orientation) if turned else pixels


def orientation_unclear(path: Path, orientation: int) -> DataError:
    """Return the error for an image that its labels may fit as stored or as displayed."""
    return DataError(
        f"{path} has the Exif orientation {orientation}: its labels may fit the image as stored or as displayed",
        hint="Save the image without the orientation, as the labels show it.",
    )


def _read(path: Path, head: bytes, size: tuple[int, int] | None, imagery: ImageryOptions) -> Array:
    if head.startswith(JPEG) and _is_plain(imagery) and not _has_sidecar(path):
        pixels = _read_jpeg(path, size, imagery)
        if pixels is not None:
            return pixels
    name = str(path)
    with closing(_open(path, size, imagery)) as raster:
        try:
            bands = select_bands(raster.bands, imagery, name=name, rgb=raster.roles.rgb)
            stretch = choose_stretch(
                imagery, dtype=raster.dtype, bands=len(bands), name=name, sample=lambda: sample_values(raster, bands)
            )
        except SceneError as error:
            raise DataError(error.problem, got=error.got, expected=error.expected, hint=error.hint) from error
        try:
            values, valid = raster.read(bands, Window(0, 0, *raster.size))
        except SceneError as error:
            raise _unreadable(path, error.problem) from error
        return to_rgb(values, valid, stretch)[0]


def companions(path: Path) -> list[Path]:
    """Return the existing files that belong to an image, such as its mask, header, metadata or world file."""
    names = [path.name + suffix for suffix in (".msk", ".aux.xml", ".hdr", ".ovr")]
    names += [path.stem + suffix for suffix in (".hdr", ".aux", ".tfw", ".pgw", ".jgw", ".wld", ".prj")]
    return [one for one in map(path.with_name, names) if os.path.isfile(one)]  # noqa: PTH113 - long names are no error


def open_image(path: Path, *, imagery: ImageryOptions | None = None) -> Raster:
    """Open an image file of any size for reading by window; formats without windowed access are read into memory.

    Raises:
        DataError: The file is missing or damaged, or has no such alpha band.
    """
    imagery = imagery or ImageryOptions()
    head = _head(path)
    if head.startswith(SMALL_FORMATS):
        return _open_small(path, None, imagery)
    if head.startswith(PNG):
        _check_png_end(path)
    return _open_raster(path, imagery)


def resize(pixels: Array, size: tuple[int, int], *, of: Window | None = None) -> Array:
    """Return uint8 pixels [height, width, 3] resized to (height, width), bilinear with antialiasing.

    `of` is the window that is resized; pixels around it count where the filter reaches beyond it.
    """
    of = of or Window(0, 0, pixels.shape[0], pixels.shape[1])
    if (of.height, of.width) == size:
        return pixels[of.top : of.bottom, of.left : of.right]
    # Pillow rounds between the two directions, and chooses the first one by the size of the image. A tile would then
    # depend on the image that it is cut from.
    columns, rows = (of.left, 0, of.right, pixels.shape[0]), (0, of.top, size[1], of.bottom)
    across = Image.fromarray(pixels).resize((size[1], pixels.shape[0]), Image.Resampling.BILINEAR, box=columns)
    return np.asarray(across.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=rows))


def pad(pixels: Array, size: tuple[int, int]) -> Array:
    """Return `pixels` padded at the right and bottom to (height, width) with the padding color."""
    if pixels.shape[:2] == size:
        return pixels
    canvas = np.full((*size, 3), PADDING_RGB, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
    except FileNotFoundError as error:
        hint = "Check the image folder, and the names with `ifkd data check`."
        raise DataError(f"There is no image {path}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not head:
        raise _unreadable(path, "it is empty")
    return head


def _unreadable(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is not an image that can be read ({reason})")


def _is_plain(imagery: ImageryOptions) -> bool:
    """Return whether 8-bit pixels are unchanged."""
    changes = imagery.bands, imagery.limits, imagery.nodata
    return changes == (None, None, None) and imagery.alpha in {None, "none"} and not imagery.stretch_uint8


def _has_sidecar(path: Path) -> bool:
    """Return whether a file beside the image has its mask or metadata, which only GDAL reads."""
    return any(path.with_name(f"{path.name}{ending}").exists() for ending in (".msk", ".aux.xml"))


def _check_png_end(path: Path) -> None:
    """Refuse a truncated PNG, of which GDAL reads the first part without an error."""
    with path.open("rb") as stream:
        stream.seek(-min(PNG_END_BYTES, path.stat().st_size), os.SEEK_END)
        if PNG_END not in stream.read():
            raise _unreadable(path, "it is truncated")


def _check_size(path: Path, found: tuple[int, int], size: tuple[int, int] | None, imagery: ImageryOptions) -> None:
    """Refuse an image by the size in its header, before it is decoded."""
    got = f"{found[1]}x{found[0]} (width x height)"
    if found[0] * found[1] > imagery.max_pixels:
        raise DataError(
            f"{path} is too large for a training image",
            got=got,
            expected=f"at most {imagery.max_pixels} pixels (data.imagery.max_pixels)",
            hint="Slice it with `ifkd data slice`, or increase the limit.",
        )
    if size is not None and found != size:
        raise DataError(f"{path} does not have the size of its annotations", got=got, expected=f"{size[1]}x{size[0]}")


def _read_jpeg(path: Path, size: tuple[int, int] | None, imagery: ImageryOptions) -> Array | None:
    """Return the pixels of a JPEG; None for colors and masks that only GDAL reads."""
    try:
        content = path.read_bytes()
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        _check_size(path, (height, width), size, imagery)
        if colors in {"CMYK", "YCCK"} or _has_jpeg_mask(content):
            return None
        return simplejpeg.decode_jpeg(content, "RGB")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _has_jpeg_mask(content: bytes) -> bool:
    """Return whether GDAL's mask follows the picture; the last 4 bytes are its position."""
    position = int.from_bytes(content[-4:], "little")
    return position < len(content) - 4 and content[position - 2 : position] == JPEG_END


def _open(path: Path, size: tuple[int, int] | None, imagery: ImageryOptions) -> Raster:
    """Open an image whose size is as stated and within the limit, checked before it is decoded."""
    head = _head(path)
    if head.startswith(SMALL_FORMATS):
        return _open_small(path, size, imagery)
    raster = _open_raster(path, imagery)
    try:
        _check_size(path, raster.size, size, imagery)
        if raster.driver == "PNG":
            _check_png_end(path)
    except BaseException:
        raster.close()
        raise
    return raster


def _open_small(path: Path, size: tuple[int, int] | None, imagery: ImageryOptions) -> RasterArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size has a limit of its own
            with Image.open(path) as image:
                _check_size(path, (image.height, image.width), size, imagery)
                if not image.has_transparency_data:
                    return RasterArray(np.asarray(image.convert("RGB")), imagery=imagery)
                alpha = imagery.model_copy(update={"alpha": imagery.alpha or 4})
                return RasterArray(np.asarray(image.convert("RGBA")), imagery=alpha)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, SceneError) as error:
        raise _unreadable(path, error) from error


def _open_raster(path: Path, imagery: ImageryOptions) -> RasterFile:
    try:
        return RasterFile(path, imagery=imagery, drivers=DRIVERS)
    except SceneError as error:
        raise _unreadable(path, error.problem) from error
