"""A scene: a raster of any size and type, seen window by window as uint8 RGB with gaps filled."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deploy.scene.read.georeference import Georeference, georeference_of
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError, UsageError
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import (
    PADDING_RGB,
    Imagery,
    Scaling,
    choose_bands,
    choose_scaling,
    decimated,
    row_blocks,
    sample,
    to_rgb,
)
from ifkd.imagery.raster import Raster, RasterAddress, RasterArray, RasterFile, located

PIECE_BYTES = 8 << 20
"""Raw values converted at a time."""
CACHE_BYTES = 64 << 20
"""GDAL's own cache of decoded blocks, which would otherwise take a twentieth of the machine's memory."""
ALL_VALID = np.ones((), bool)
"""Shown in every pixel where a scene cannot have gaps, which costs no memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A part of a scene, ready to look at."""

    pixels: Array
    """uint8 [height, width, 3]; the padding color where there is no data."""
    valid: Array
    """bool [height, width]: where the scene has data."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneInfo:
    """What a scene is, and how it was read."""

    name: str
    """File name."""
    path: str
    driver: str
    size: tuple[int, int]
    """(height, width), pixels."""
    dtype: str
    bands: tuple[int, ...]
    """Bands read as red, green, blue; one is repeated."""
    nodata: float | None
    scaling: Scaling
    georeference: Georeference | None


class Scene:
    """A raster opened for detection. Use it in a `with`, or `close` it.

    Args:
        source: A file, an address, or an array [height, width] or [height, width, bands].
        imagery: How its values become uint8 RGB; a bundle's manifest says how its network's images did.
        bands: One or three band numbers, from 1, in place of the imagery's.
        scale_range: The values that become 0 and 255, in place of the imagery's limits.
        nodata: The value that means "no data", when the file does not say, in place of the imagery's.
        scaling: How values become uint8, where that was chosen before: it is not looked for again.

    Raises:
        SceneError: It cannot be read or shown as RGB.
    """

    def __init__(
        self,
        source: Path | RasterAddress | str | Array,
        *,
        imagery: Imagery | None = None,
        bands: tuple[int, ...] | None = None,
        scale_range: tuple[float, float] | None = None,
        nodata: float | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        imagery = _laid_over(imagery or Imagery(), bands=bands, limits=scale_range, nodata=nodata)
        nodata = imagery.nodata
        source = located(source) if isinstance(source, str) else source
        self.place = None if isinstance(source, np.ndarray) else source
        """Where it lies; None in memory."""
        self._raster: Raster = (
            RasterArray(source, nodata=nodata) if isinstance(source, np.ndarray) else RasterFile(source, nodata=nodata)
        )
        try:
            self._bands = choose_bands(self._raster.bands, imagery, name=self._raster.name)
            scaling = scaling or choose_scaling(
                imagery,
                dtype=self._raster.dtype,
                bands=len(self._bands),
                name=self._raster.name,
                sample=lambda: sample(self._thinned, self._raster.size, bands=len(self._bands)),
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
            scaling=scaling,
            georeference=None if self._raster.handle is None else georeference_of(self._raster.handle),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self._raster.size

    @property
    def block_rows(self) -> int:
        """Rows of the file that are decoded together."""
        return self._raster.block_rows

    @property
    def caches_a_row_of_blocks(self) -> bool:
        """Whether the blocks of the file are tiles, and those that lie side by side fit into GDAL's cache together."""
        raster = self._raster
        pixels = raster.block_rows * raster.size[1]
        row_bytes = pixels * max(3, len(raster.bands)) * np.dtype(raster.dtype).itemsize
        return raster.block_columns < raster.size[1] and row_bytes <= CACHE_BYTES * 7 // 8

    def read(self, window: Window) -> Patch:
        """Return a window; beyond the scene's border it is padded.

        Raises:
            SceneError: It cannot be read.
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
            place = np.s_[top - window.top : bottom - window.top, left - window.left : right - window.left]
            part = Window(top, left, bottom - top, right - left)
            self.read_into(part, pixels[place], None if valid is ALL_VALID else valid[place])
        if valid is ALL_VALID:
            valid = np.broadcast_to(valid, (window.height, window.width))
        return Patch(pixels, valid)

    @property
    def gapless(self) -> bool:
        """Whether every pixel is known to have data before it is read."""
        return not self._raster.may_have_gaps

    def read_into(self, window: Window, pixels: Array, valid: Array | None) -> None:
        """Read a window inside the scene into uint8 [height, width, 3] and bool [height, width].

        Args:
            window: Inside the scene.
            pixels: Filled.
            valid: Filled; None when it is not wanted.

        Raises:
            SceneError: It cannot be read.
        """
        for part in self._pieces(window):
            patch = self._convert(*self._raster.read(self._bands, part))
            place = np.s_[
                part.top - window.top : part.bottom - window.top, part.left - window.left : part.right - window.left
            ]
            pixels[place] = patch.pixels
            if valid is not None:
                valid[place] = patch.valid

    def overview(self, longest_px: int) -> Patch:
        """Return the whole scene thinned so that no side is above `longest_px`; unreadable parts are gaps."""
        height, width = decimated(self.size, longest_px)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        valid = np.zeros((height, width), bool)
        for window, start, stop in row_blocks(self.size, height):
            try:
                values, present = self._raster.read(self._bands, window, shape=(stop - start, width), smooth=True)
            except SceneError:
                continue
            patch = self._convert(values, present)
            pixels[start:stop], valid[start:stop] = patch.pixels, patch.valid
        return Patch(pixels, valid)

    def files(self) -> dict[str, str]:
        """Return size and time of change of every file that the scene consists of, by name."""
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

    def _pieces(self, window: Window) -> Iterator[Window]:
        """Yield parts of a window that are converted at a time: whole blocks, as far as memory allows."""
        pixel_bytes = len(self._bands) * np.dtype(self._raster.dtype).itemsize
        block_rows, block_columns = self._raster.block_rows, self._raster.block_columns
        most = max(1, PIECE_BYTES // pixel_bytes)
        rows = _in_blocks(most // window.width, block_rows)
        columns = window.width
        if rows < min(block_rows, window.height) and block_columns < self.size[1]:  # tall blocks: fewer side by side
            rows = min(block_rows, window.height)
            columns = _in_blocks(most // rows, block_columns)
        for top, bottom in _steps(window.top, window.bottom, max(1, rows)):
            for left, right in _steps(window.left, window.right, max(1, columns)):
                yield Window(top, left, bottom - top, right - left)

    def _thinned(self, window: Window, shape: tuple[int, int]) -> tuple[Array, Array | None]:
        return self._raster.read(self._bands, window, shape=shape)

    def _convert(self, values: Array, present: Array | None) -> Patch:
        return Patch(*to_rgb(values, present, self.info.scaling))


def _in_blocks(length: int, block: int) -> int:
    """Return the greatest multiple of a block that is at most `length`, or `length` below one block."""
    return length // block * block if length > block else length


def _steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges that cover start to stop, cut at multiples of `step` where it is above 1."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end


def _laid_over(imagery: Imagery, **given: Any) -> Imagery:
    """Return the imagery with what the user gave in its place.

    Raises:
        UsageError: The limits do not rise.
    """
    limits = given["limits"]
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise UsageError("The scale range must be two numbers, the lower first", got=f"{limits[0]:g} {limits[1]:g}")
    return imagery.model_copy(update={key: value for key, value in given.items() if value is not None})
