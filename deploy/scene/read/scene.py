"""Scenes: rasters of any size and type, read by windows as uint8 RGB."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

from deploy.scene.read.acquisition_time import TIFF_TAG, AcquisitionTime, tag_time
from deploy.scene.read.georeference import Georeference, georeference_of
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import Window
from ifkd.imagery import contrast
from ifkd.imagery.address import HTTP_OPTIONS, RasterAddress, parse_source
from ifkd.imagery.contrast import PADDING_RGB, AlphaBand, ContrastStretch, ImageryOptions
from ifkd.imagery.raster import Raster, RasterArray, RasterFile
from ifkd.imagery.value_sample import sample_values

CONVERSION_BYTES = 8 << 20
"""Bytes of raw values that are converted to RGB at a time."""
OVERVIEW_ROWS = (64, 1024)
"""Least and largest number of rows that are reduced at a time, for the overview: those of a block between them."""
CACHE_BYTES = 64 << 20
"""Size of GDAL's cache of decoded blocks; its default is 5 % of the machine's memory."""


def gdal_environment() -> AbstractContextManager[Any]:
    """Return the GDAL options for reading scenes: size of the cache, and retries over HTTP."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **HTTP_OPTIONS)


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
    nodata: tuple[float | None, ...]
    """Value of pixels without data in each of `bands`."""
    stretch: ContrastStretch
    georeference: Georeference | None
    place_problem: str | None = None
    """Reason why there is no georeference, as the rest of a sentence."""
    alpha: int | None = None
    """Band that is 0 where the scene has no data."""
    time: AcquisitionTime | None = None
    remarks: tuple[str, ...] = ()
    """Assumptions about the scene that may be wrong, for the user."""

    @property
    def lonlat_problem(self) -> str | None:
        """Reason why places in the scene have no longitude and latitude; None if they have."""
        if self.georeference is None:
            return f"{self.name} {self.place_problem}"
        return self.georeference.lonlat_problem(self.size)


class Scene:
    """A raster that is open for detection. Use it as a context manager, or call `close`.

    Args:
        source: A file, a URL, or an array [height, width] or [height, width, bands].
        imagery: Conversion to uint8 RGB; a bundle's manifest has that of its training images.
        bands: One or three band numbers, from 1; overrides the imagery.
        scale_range: Values that become 0 and 255; overrides the imagery.
        nodata: Value of pixels without data, if the file does not state it; overrides the imagery.
        alpha: Band that is 0 where the scene has no data, or `none`; overrides the imagery.
        stretch: Contrast stretch that was chosen before; by default it is computed from a sample.
        overview: Number of the overview of the file to read instead of the full resolution.
        time: Acquisition time; by default that of the file's tags.

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
        alpha: AlphaBand | None = None,
        stretch: ContrastStretch | None = None,
        overview: int | None = None,
        time: AcquisitionTime | None = None,
    ) -> None:
        imagery = imagery or ImageryOptions()
        imagery = override(imagery, bands=bands, limits=scale_range, nodata=nodata, alpha=alpha)
        source = parse_source(source) if isinstance(source, str) else source
        self.location: Path | RasterAddress | None = None
        """File or URL; None for an array."""
        if isinstance(source, np.ndarray):
            self._raster: Raster = RasterArray(source, imagery=imagery)
        else:
            self.location, self._raster = source, RasterFile(source, imagery=imagery, overview=overview)
        raster = self._raster
        self.size = raster.size
        """(height, width), pixels."""
        self.overview_sizes = raster.overview_sizes
        """(height, width) of the overviews that are certainly not older than the scene, the largest first."""
        self.block_rows, self.block_columns = raster.block_rows, raster.block_columns
        """Height and width of a block of the file."""
        self.gapless = not raster.may_have_gaps
        """Whether the file's metadata rules out pixels without data."""
        try:
            self._bands = contrast.select_bands(raster.bands, imagery, name=raster.name, rgb=raster.roles.rgb)
            stretch = stretch or contrast.choose_stretch(
                imagery,
                dtype=raster.dtype,
                bands=len(self._bands),
                name=raster.name,
                sample=lambda: sample_values(raster, self._bands),
            )
        except BaseException:
            self.close()
            raise
        place = "is an array" if raster.dataset is None else georeference_of(raster.dataset)
        remarks = [*raster.remarks, *(one.remark(raster.name) for one in stretch.left_out)]
        tagged = None if time is not None or raster.dataset is None else tag_time(raster.dataset.tags())
        if isinstance(tagged, str):
            remarks.append(f"The {TIFF_TAG} of {raster.name} is not a time: {tagged!r}. State the time with --time.")
        elif tagged is not None:
            time = tagged
        self.info = SceneInfo(
            name=raster.name,
            path=str(self.location or ""),
            driver=raster.driver,
            size=raster.size,
            dtype=raster.dtype,
            bands=self._bands,
            nodata=tuple(raster.nodata[band - 1] for band in self._bands),
            stretch=stretch,
            georeference=None if isinstance(place, str) else place,
            place_problem=place if isinstance(place, str) else None,
            alpha=raster.roles.alpha,
            time=time,
            remarks=tuple(remarks),
        )
        self.imagery = imagery.model_copy(update={"bands": self._bands, "alpha": raster.roles.alpha or "none"})
        """Options with which another process reads the same pixels, given the same contrast stretch."""

    @property
    def caches_a_row_of_blocks(self) -> bool:
        """True for a tiled file with a row of blocks that fits into GDAL's cache."""
        return self.block_columns < self.size[1] and self._fits_into_cache(self.block_rows)

    def decode_once(self) -> None:
        """Decode a file of whole rows from top to bottom, if GDAL's cache keeps it.

        JPEG and PNG cannot be read from the middle: rows that are read out of order are decoded again and again.
        """
        if self.block_columns == self.size[1] and self._fits_into_cache(self.size[0]):
            with suppress(SceneError):  # reading the tiles reports it
                self.read(Window(0, 0, self.size[0], 1))

    def _fits_into_cache(self, rows: int) -> bool:
        row_bytes = self.size[1] * max(3, len(self._raster.bands)) * np.dtype(self._raster.dtype).itemsize
        return rows * row_bytes <= CACHE_BYTES * 7 // 8

    def read(self, window: Window) -> Patch:
        """Return a window, padded beyond the scene's border.

        Raises:
            SceneError: The window is unreadable.
        """
        top, left = max(window.top, 0), max(window.left, 0)
        bottom, right = min(window.bottom, self.size[0]), min(window.right, self.size[1])
        part = Window(top, left, max(0, bottom - top), max(0, right - left))
        shape = (window.height, window.width)
        pixels, valid = np.empty((*shape, 3), np.uint8), np.zeros(shape, bool)
        if part.height and part.width:
            rows, columns = target = _slices(part, of=window)
            self.read_into(part, pixels[target], valid[target])
            for outside in (
                np.s_[: rows.start],
                np.s_[rows.stop :],
                np.s_[rows, : columns.start],
                np.s_[rows, columns.stop :],
            ):
                pixels[outside] = PADDING_RGB
        else:
            pixels[:] = PADDING_RGB
        return Patch(pixels, valid)

    def read_into(self, window: Window, pixels: Array, valid: Array | None) -> None:
        """Read a window inside the scene into uint8 [height, width, 3] and, if given, bool [height, width].

        Raises:
            SceneError: The window is unreadable.
        """
        for part in self._conversion_windows(window):
            target = _slices(part, of=window)
            pixels[target], present = contrast.to_rgb(*self._raster.read(self._bands, part), self.info.stretch)
            if valid is not None:
                valid[target] = present

    def overview(self, longest_px: int, *, within: Window | None = None) -> Patch:
        """Return the scene reduced to at most `longest_px` a side; unreadable parts and those outside have no data.

        Overviews of the file are not used: they may belong to an earlier state of it.
        """
        height, width = contrast.decimated(self.size, longest_px)
        pixels = np.full((height, width, 3), PADDING_RGB, np.uint8)
        valid = np.zeros((height, width), bool)
        within = within or Window(0, 0, *self.size)
        first, last = within.top * height // self.size[0], min(height, -(-within.bottom * height // self.size[0]))
        left, right = within.left * width // self.size[1], min(width, -(-within.right * width // self.size[1]))
        x1, x2 = left * self.size[1] // width, right * self.size[1] // width
        rows = min(max(self.block_rows, OVERVIEW_ROWS[0]), OVERVIEW_ROWS[1])
        for start, stop in _steps(first, last, max(1, rows * height // self.size[0])):
            top, bottom = start * self.size[0] // height, stop * self.size[0] // height
            target, size = np.s_[start:stop, left:right], (right - left, stop - start)
            with suppress(SceneError):
                part = self.read(Window(top, x1, bottom - top, x2 - x1))
                picture = Image.fromarray(part.pixels).resize(size, Image.Resampling.BOX, reducing_gap=2.0)
                pixels[target], valid[target] = (
                    np.asarray(picture),
                    np.asarray(Image.fromarray(part.valid).resize(size)),
                )
        return Patch(pixels, valid)

    def at_overview(self, number: int) -> "Scene":
        """Open an overview of the scene, with the same bands and contrast.

        Raises:
            SceneError: The overview is unreadable.
        """
        assert self.location is not None
        stretch, time = self.info.stretch, self.info.time
        return Scene(self.location, imagery=self.imagery, stretch=stretch, overview=number, time=time)

    def files(self) -> dict[str, str]:
        """Return size and modification time of every file of the scene, by name."""
        return self._raster.files()

    def close(self) -> None:
        """Close the file."""
        self._raster.close()

    def __enter__(self) -> "Scene":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(self, *_: object) -> None:
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


def _slices(part: Window, *, of: Window) -> tuple[slice, slice]:
    """Return the rows and columns of a part of a window."""
    return np.s_[part.top - of.top : part.bottom - of.top, part.left - of.left : part.right - of.left]


def _whole_blocks(length: int, block: int) -> int:
    """Return the largest multiple of `block` that is at most `length`, or `length` if it is below one block."""
    return length // block * block if length > block else length


def _steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges from start to stop, split at multiples of `step`."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end


def override(imagery: ImageryOptions, **values: Any) -> ImageryOptions:
    """Return the imagery with the values that are not None."""
    limits = values.get("limits")
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise UsageError("The scale range must be two numbers, the lower first", got=f"{limits[0]:g} {limits[1]:g}")
    return imagery.model_copy(update={key: value for key, value in values.items() if value is not None})
