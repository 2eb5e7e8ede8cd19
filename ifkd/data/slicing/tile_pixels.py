"""The pixels of tiles: read window by window, in the source's own type and with all its bands, and written."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from ifkd.core.detections import Array
from ifkd.core.errors import DataError, OutputError, SceneError
from ifkd.core.tiling import Window
from ifkd.data.slicing.tile_plan import SourceImage
from ifkd.imagery.contrast import Imagery, sample
from ifkd.imagery.image_files import open_image
from ifkd.imagery.raster import Raster

LEAST_CACHE_BYTES, MOST_CACHE_BYTES = 32 << 20, 256 << 20
"""Of GDAL's cache of decoded blocks: a row of tiles is cut from it, so that blocks are decoded once or twice."""


@contextmanager
def opened(source: SourceImage, *, tile_px: int, nodata: float | None) -> Iterator[Raster]:
    """Open an image for reading in windows, row by row.

    Raises:
        DataError: It is absent, broken, or not of the size that its labels state.
    """
    raster = open_image(source.path, nodata=nodata)
    try:
        if raster.size != source.size:
            raise DataError(
                f"{source.path} has another size than its labels state",
                got=f"{raster.size[1]}x{raster.size[0]} (width x height)",
                expected=f"{source.size[1]}x{source.size[0]}",
            )
        with rasterio.Env(GDAL_CACHEMAX=_cache_bytes(raster, tile_px), GDAL_ERROR_ON_LIBJPEG_WARNING=True):
            yield raster
    finally:
        raster.close()


def read(raster: Raster, window: Window) -> tuple[Array, Array | None]:
    """Return values [bands, height, width] and where there is data, as `Raster.read` does; what is not a number is not.

    Raises:
        DataError: The window cannot be read.
    """
    try:
        values, valid = raster.read(raster.bands, window)
    except SceneError as error:
        raise DataError(error.problem, hint=error.hint) from error
    if values.dtype.kind == "f":
        finite: Array = np.asarray(np.isfinite(values).any(axis=0))
        valid = finite if valid is None else valid & finite
    return values, valid


def limits_of(raster: Raster, imagery: Imagery) -> tuple[float, float] | None:
    """Return the values between which the percentiles of an image lie, in all its bands; None where 8 bits are.

    Raises:
        DataError: The image cannot be read.
    """
    if raster.dtype == "uint8":
        return None
    bands = raster.bands[:3]
    try:
        found = sample(lambda window, shape: raster.read(bands, window, shape=shape), raster.size, bands=len(bands))
    except SceneError as error:
        raise DataError(error.problem, hint=error.hint) from error
    values = np.concatenate(found)
    if not len(values):
        return None
    low, high = np.percentile(values, imagery.percentiles)
    return float(low), float(high)


class TileWriter:
    """Writes the tiles of one image as GeoTIFF: lossless, at their place on the map where the source has one."""

    def __init__(self, raster: Raster) -> None:
        self._raster = raster
        handle = raster.handle
        self._placed = handle is not None and not handle.transform.is_identity
        kind = np.dtype(raster.dtype).kind
        self._profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": len(raster.bands),
            "dtype": raster.dtype,
            "compress": "deflate",
            "zlevel": 2,  # a third faster than the default, for a few percent of size
            "predictor": 3 if kind == "f" else 2,
            "photometric": "RGB" if len(raster.bands) == 3 and raster.dtype == "uint8" else "MINISBLACK",
        }
        if raster.nodata is not None and _holds(raster.dtype, raster.nodata):
            self._profile["nodata"] = raster.nodata
        if self._placed:
            self._profile["crs"] = handle.crs

    def write(self, path: Path, window: Window, values: Array, valid: Array | None) -> None:
        """Write a window's values, and a mask where some pixels have no data.

        Raises:
            OutputError: There is no room.
        """
        place = {}
        if self._placed:
            to_map = self._raster.handle.transform
            east = to_map.c + to_map.a * window.left + to_map.b * window.top
            north = to_map.f + to_map.d * window.left + to_map.e * window.top
            place["transform"] = Affine(to_map.a, to_map.b, east, to_map.d, to_map.e, north)
        try:
            with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(
                    path, "w", height=window.height, width=window.width, **self._profile, **place
                ) as dataset:
                    dataset.write(values)
                    if valid is not None and not valid.all():
                        dataset.write_mask(valid)
        except (RasterioError, OSError) as error:
            raise OutputError(f"Cannot write {path} ({error})", hint="Free space, or choose another place.") from error


def _holds(dtype: str, value: float) -> bool:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return True
    limits = np.iinfo(kind)
    return bool(np.isfinite(value)) and float(value).is_integer() and limits.min <= value <= limits.max


def _cache_bytes(raster: Raster, tile_px: int) -> int:
    """Return the memory in which the blocks of a row of tiles stay decoded, within limits."""
    rows = (-(-tile_px // raster.block_rows) + 1) * raster.block_rows
    wanted = rows * raster.size[1] * max(len(raster.bands), 3) * np.dtype(raster.dtype).itemsize
    return min(max(wanted, LEAST_CACHE_BYTES), MOST_CACHE_BYTES)
