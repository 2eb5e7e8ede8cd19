"""Scenes: rasters of any size and type, read by windows as uint8 RGB."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio

from deploy.scene.read.georeference import Georeference, georeference_of
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import Window
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress, parse_source
from ifkd.imagery.contrast import (
    PADDING_RGB,
    ContrastStretch,
    ImageryOptions,
    choose_stretch,
    decimated,
    row_blocks,
    sample_values,
    select_bands,
    to_rgb,
)
from ifkd.imagery.raster import Raster, RasterArray, RasterFile

CONVERSION_BYTES = 8 << 20
"""Bytes of raw values that are converted to RGB at a time."""
CACHE_BYTES = 64 << 20
"""Size of GDAL's cache of decoded blocks; its default is 5 % of the machine's memory."""
ALL_VALID = np.ones((), bool)
"""Mask of a scene without gaps, broadcast to any shape without memory."""


def gdal_environment() -> AbstractContextManager[Any]:
    """Return the GDAL options for reading scenes: size of the cache, and retries over HTTP."""
    environment: AbstractContextManager[Any] = rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **HTTP_OPTIONS)
    return environment


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A window of a scene as RGB."""

    pixels: Array
    """uint8 [height, width, 3]; the padding color where the scene has no data."""
    valid: Array
    """bool [height, width]: where the scene has data."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneInfo:
    """Metadata of a scene, and how it is converted to RGB."""

    name: str
    """File name."""
    path: str
    driver: str
    size: tuple[int, int]
    """(height, width), pixels."""
    dtype: str
    bands: tuple[int, ...]
    """Bands that are read as red, green and blue; a single band is repeated."""
    nodata: float | None
    stretch: ContrastStretch
    georeference: Georeference | None


class Scene:
    """A raster that is open for detection. Use it as a context manager, or call `close`.

    Args:
        source: A file, a URL, or an array [height, width] or [height, width, bands].
        imagery: Conversion to uint8 RGB; a bundle's manifest has that of its training images.
        bands: One or three band numbers, from 1; overrides the imagery.
        scale_range: Values that become 0 and 255; overrides the imagery.
        nodata: Value of pixels without data, if the file does not state it; overrides the imagery.
        stretch: Contrast stretch that was chosen before; by default it is computed from a sample.

    Raises:
        SceneError: The raster is unreadable, or cannot be converted to RGB.
        UsageError: The scale range is invalid.
    """

    def __init__(
        self,
        source: Path | RasterAddress | str | Array,
        *,
        imagery: ImageryOptions | None = None,
        bands: tuple[int, ...] | None = None,
        scale_range: tuple[float, float] | None = None,
        nodata: float | None = None,
        stretch: ContrastStretch | None = None,
    ) -> None:
        imagery = _override(imagery or ImageryOptions(), bands=bands, limits=scale_range, nodata=nodata)
        nodata = imagery.nodata
        source = parse_source(source) if isinstance(source, str) else source
        self.location = None if isinstance(source, np.ndarray) else source
        """File or URL; None for an array."""
        self._raster: Raster = (
            RasterArray(source, nodata=nodata) if isinstance(source, np.ndarray) else RasterFile(source, nodata=nodata)
        )
        try:
            self._bands = select_bands(self._raster.bands, imagery, name=self._raster.name)
            stretch = stretch or choose_stretch(
                imagery,
                dtype=self._raster.dtype,
                bands=len(self._bands),
                name=self._raster.name,
                sample=lambda: sample_values(self._read_decimated, self._raster.size, bands=len(self._bands)),
            )
        except BaseException:
            self.close()
            raise
        self.info = SceneInfo(
            name=self._raster.name,
            path="" if isinstance(source, np.ndarray) else str(source),
            driver=self._raster.driver,
            size=self._raster.size,
            dtype=self._raster.dtype,
            bands=self._bands,
            nodata=self._raster.nodata,
            stretch=stretch,
            georeference=None if self._raster.dataset is None else georeference_of(self._raster.dataset),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self._raster.size

    @property
    def block_rows(self) -> int:
        """Height of a block of the file."""
        return self._raster.block_rows

    @property
    def caches_a_row_of_blocks(self) -> bool:
        """True for a tiled file with a row of blocks that fits into GDAL's cache."""
        raster = self._raster
        pixels = raster.block_rows * raster.size[1]
        row_bytes = pixels * max(3, len(raster.bands)) * np.dtype(raster.dtype).itemsize
        return raster.block_columns < raster.size[1] and row_bytes <= CACHE_BYTES * 7 // 8

    def read(self, window: Window) -> Patch:
        """Return a window, padded beyond the scene's border.

        Raises:
            SceneError: The window is unreadable.
        """
        height, width = self.size
        inside = window.top >= 0 and window.left >= 0 and window.bottom <= height and window.right <= width
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        valid = ALL_VALID if inside and self.gapless else np.zeros((window.height, window.width), bool)
        if not inside:
            pixels[:] = PADDING_RGB
        top, left = max(window.top, 0), max(window.left, 0)
        bottom, right = min(window.bottom, height), min(window.right, width)
        if bottom > top and right > left:
            target = np.s_[top - window.top : bottom - window.top, left - window.left : right - window.left]
            part = Window(top, left, bottom - top, right - left)
            self.read_into(part, pixels[target], None if valid is ALL_VALID else valid[target])
        if valid is ALL_VALID:
            valid = np.broadcast_to(valid, (window.height, window.width))
        return Patch(pixels, valid)

    @property
    def gapless(self) -> bool:
        """True if the file's metadata rules out pixels without data."""
        return not self._raster.may_have_gaps

    def read_into(self, window: Window, pixels: Array, valid: Array | None) -> None:
        """Read a window inside the scene into uint8 [height, width, 3] and bool [height, width].

        Args:
            window: A window inside the scene.
            pixels: Destination of the pixels.
            valid: Destination of the mask, or None.

        Raises:
            SceneError: The window is unreadable.
        """
        for part in self._conversion_windows(window):
            patch = self._convert(*self._raster.read(self._bands, part))
            target = np.s_[
                part.top - window.top : part.bottom - window.top, part.left - window.left : part.right - window.left
            ]
            pixels[target] = patch.pixels
            if valid is not None:
                valid[target] = patch.valid

    def overview(self, longest_px: int) -> Patch:
        """Return the scene resampled to at most `longest_px` a side; unreadable parts have no data."""
        height, width = decimated(self.size, longest_px)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        valid = np.zeros((height, width), bool)
        for window, start, stop in row_blocks(self.size, height):
            try:
                values, present = self._raster.read(self._bands, window, shape=(stop - start, width), average=True)
            except SceneError:
                continue
            patch = self._convert(values, present)
            pixels[start:stop], valid[start:stop] = patch.pixels, patch.valid
        return Patch(pixels, valid)

    def files(self) -> dict[str, str]:
        """Return size and modification time of every file of the scene, by name."""
        return self._raster.files()

    def close(self) -> None:
        """Close the file."""
        self._raster.close()

    def __enter__(self) -> "Scene":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _conversion_windows(self, window: Window) -> Iterator[Window]:
        """Yield the parts of a window that are converted at a time: complete blocks if memory allows."""
        pixel_bytes = len(self._bands) * np.dtype(self._raster.dtype).itemsize
        block_rows, block_columns = self._raster.block_rows, self._raster.block_columns
        max_pixels = max(1, CONVERSION_BYTES // pixel_bytes)
        rows = _whole_blocks(max_pixels // window.width, block_rows)
        columns = window.width
        if rows < min(block_rows, window.height) and block_columns < self.size[1]:  # tall blocks: fewer columns
            rows = min(block_rows, window.height)
            columns = _whole_blocks(max_pixels // rows, block_columns)
        for top, bottom in _steps(window.top, window.bottom, max(1, rows)):
            for left, right in _steps(window.left, window.right, max(1, columns)):
                yield Window(top, left, bottom - top, right - left)

    def _read_decimated(self, window: Window, shape: tuple[int, int]) -> tuple[Array, Array | None]:
        return self._raster.read(self._bands, window, shape=shape)

    def _convert(self, values: Array, present: Array | None) -> Patch:
        return Patch(*to_rgb(values, present, self.info.stretch))


def _whole_blocks(length: int, block: int) -> int:
    """Return the largest multiple of `block` that is at most `length`, or `length` if it is below one block."""
    return length // block * block if length > block else length


def _steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges from start to stop, split at multiples of `step`."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end


def _override(imagery: ImageryOptions, **values: Any) -> ImageryOptions:
    """Return the imagery with the values that are not None."""
    limits = values["limits"]
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise UsageError("The scale range must be two numbers, the lower first", got=f"{limits[0]:g} {limits[1]:g}")
    return imagery.model_copy(update={key: value for key, value in values.items() if value is not None})
