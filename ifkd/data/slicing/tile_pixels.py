"""Pixels of tiles in an image's own data type; functions raise `DataError` for an image that is not as labeled."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ifkd.core.detections import Array
from ifkd.core.errors import DataError, OutputError, SceneError
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_plan import SourceImage
from ifkd.imagery.contrast import ImageryOptions, select_bands
from ifkd.imagery.exif import exif_orientation, fits_displayed
from ifkd.imagery.image_files import open_image, orientation_unclear
from ifkd.imagery.raster import Raster
from ifkd.imagery.validity import typed_nodata, valid_of_bands
from ifkd.imagery.value_sample import sample_values

MIN_CACHE_BYTES, MAX_CACHE_BYTES = 32 << 20, 256 << 20
"""Limits of GDAL's cache of decoded blocks."""


@contextmanager
def open_source(source: SourceImage, *, tile_px: int, imagery: ImageryOptions) -> Iterator[Raster]:
    """Open an image to read rows of tiles from it."""
    raster = open_image(source.image.path, imagery=imagery)
    try:
        if raster.size != source.image.size:
            raise DataError(
                f"{source.image.path} has another size than its labels state",
                got=f"{raster.size[1]}x{raster.size[0]} (width x height)",
                expected=f"{source.image.size[1]}x{source.image.size[0]}",
                hint="`ifkd data check --fix` corrects sizes, and labels of images with an Exif orientation.",
            )
        orientation = exif_orientation(source.image.path)
        if fits_displayed(orientation, raster.size, source.image.size) is None:
            raise orientation_unclear(source.image.path, orientation)
        with rasterio.Env(GDAL_CACHEMAX=_cache_bytes(raster, tile_px), GDAL_ERROR_ON_LIBJPEG_WARNING=True):
            yield raster
    finally:
        raster.close()


def read_window(raster: Raster, window: Window) -> tuple[Array, Array | None]:
    """Return values [bands, height, width] and a mask of valid pixels, None if all are; NaN is not valid."""
    try:
        values, valid = raster.read(raster.bands, window)
    except SceneError as error:
        raise DataError(error.problem, hint=error.hint) from error
    if values.dtype.kind != "f" and (valid is None or valid.ndim == 2):
        return values, valid
    known = valid_of_bands(values, valid)
    nodata = _tile_nodata(raster)
    if valid is not None and nodata is not None:  # a tile has one nodata value for all bands
        values[~known] = nodata
    return values, np.asarray(known.any(axis=0))


@dataclass(frozen=True, slots=True)
class SourceValues:
    """Values of a source image."""

    limits: tuple[float, float] | None
    """Percentiles over its red, green and blue; None for 8 bits and without values."""
    remarks: tuple[str, ...]
    """Assumptions about the image that may be wrong, for the user."""


def source_values(raster: Raster) -> SourceValues:
    """Return the percentiles of an image's values, and remarks on it."""
    if raster.dtype == "uint8":
        return SourceValues(None, raster.remarks)
    bands = select_bands(raster.bands, ImageryOptions(), name=raster.name, rgb=raster.roles.rgb)
    try:
        sample = sample_values(raster, bands)
    except SceneError as error:
        raise DataError(error.problem, hint=error.hint) from error
    values = np.concatenate(sample.bands)
    remarks = (*raster.remarks, *(one.remark(raster.name) for one in sample.left_out))
    if not len(values):
        return SourceValues(None, remarks)
    low, high = np.percentile(values, ImageryOptions().percentiles)
    return SourceValues((float(low), float(high)), remarks)


def write_tile(path: Path, raster: Raster, window: Window, values: Array, valid: Array | None) -> None:
    """Write `values` [bands, height, width] of an image as lossless GeoTIFF, georeferenced where the image is.

    Raises:
        OutputError: The file cannot be written.
    """
    rgb = raster.roles.rgb
    is_rgb = len(raster.bands) == 3 and raster.dtype == "uint8" and rgb in {None, raster.bands}
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": len(raster.bands),
        "height": window.height,
        "width": window.width,
        "dtype": raster.dtype,
        "compress": "deflate",
        "zlevel": 2,  # a third faster than the default, for a few percent of size
        "predictor": 3 if np.dtype(raster.dtype).kind == "f" else 2,
        "photometric": "RGB" if is_rgb else "MINISBLACK",
    }
    if (nodata := _tile_nodata(raster)) is not None:
        profile["nodata"] = nodata
    if raster.dataset is not None and not raster.dataset.transform.is_identity:
        t = raster.dataset.transform
        x, y = t.c + t.a * window.left + t.b * window.top, t.f + t.d * window.left + t.e * window.top
        profile["crs"] = raster.dataset.crs
        profile["transform"] = Affine(t.a, t.b, x, t.d, t.e, y)
    try:
        with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", **profile) as dataset:
                if rgb is not None and not is_rgb:
                    names = dict(zip(rgb, (ColorInterp.red, ColorInterp.green, ColorInterp.blue), strict=True))
                    dataset.colorinterp = [names.get(band, ColorInterp.undefined) for band in raster.bands]
                dataset.write(values)
                if valid is not None and not valid.all():
                    dataset.write_mask(valid)
    except (RasterioError, OSError) as error:
        raise OutputError(f"Cannot write {path} ({error})", hint="Free space, or choose another place.") from error


def _tile_nodata(raster: Raster) -> float | int | None:
    """Return the value that means no data in all bands of a tile, or None.

    Where the bands of a file have several, it is the first one; not in 8 bits, where the other bands use that value.
    """
    several = len({repr(raster.nodata[band - 1]) for band in raster.bands}) > 1
    return None if several and raster.dtype == "uint8" else typed_nodata(raster.nodata[0], np.dtype(raster.dtype))


def _cache_bytes(raster: Raster, tile_px: int) -> int:
    """Return the cache size that keeps the blocks of a row of tiles decoded, within limits."""
    rows = (-(-tile_px // raster.block_rows) + 1) * raster.block_rows
    needed = rows * raster.size[1] * max(len(raster.bands), 3) * np.dtype(raster.dtype).itemsize
    return min(max(needed, MIN_CACHE_BYTES), MAX_CACHE_BYTES)
