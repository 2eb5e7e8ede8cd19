"""A scene: a raster of any size and type, seen window by window as uint8 RGB with gaps filled."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

from deploy.scenes.geo import Georeference
from deploy.scenes.raster import Raster, RasterArray, RasterFile
from ifkd.data.imagery import PADDING_RGB
from ifkd.detections import Array
from ifkd.errors import SceneError, UsageError
from ifkd.tiling import Window

PERCENTILES = (2.0, 98.0)
STATISTICS_PX = 1024
"""Longest side of the thinned copy from which percentiles are taken."""
STATISTICS_BANDS = 16
"""Row bands in which a thinned copy is read, so that a damaged part does not hide the rest."""
PIECE_BYTES = 8 << 20
"""Raw values converted at a time."""
ALL_VALID = np.ones((), bool)
"""Shown in every pixel where a scene cannot have gaps, which costs no memory."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How values become uint8: `low` is 0, `high` is 255, linear between, cut beyond; never wrapped."""

    rule: str
    """`as is` (uint8), `given`, or `percentiles 2-98`."""
    low: tuple[float, ...]
    """By band read."""
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A part of a scene, ready to look at."""

    pixels: Array
    """uint8 [height, width, 3]; the padding colour where there is no data."""
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
        source: A file, or an array [height, width] or [height, width, bands].
        bands: One or three band numbers, from 1; by default the first three, or the only one.
        scale_range: The values that become 0 and 255. By default uint8 stays as it is, and other types
            are scaled by percentiles of their valid pixels, band by band.
        nodata: The value that means "no data", when the file does not say.

    Raises:
        SceneError: It cannot be read or shown as RGB.
    """

    def __init__(
        self,
        source: Path | Array,
        *,
        bands: tuple[int, ...] | None = None,
        scale_range: tuple[float, float] | None = None,
        nodata: float | None = None,
    ) -> None:
        self._raster: Raster = (
            RasterArray(source, nodata=nodata) if isinstance(source, np.ndarray) else RasterFile(source, nodata=nodata)
        )
        try:
            self._bands = _choose_bands(self._raster, bands)
            scaling = self._choose_scaling(scale_range)
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
            georeference=self._raster.georeference,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self._raster.size

    @property
    def block_rows(self) -> int:
        """Rows of the file that are decoded together."""
        return self._raster.block_rows

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
        height, width = _thinned(self.size, longest_px)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        valid = np.zeros((height, width), bool)
        for window, start, stop in _row_bands(self.size, height):
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

    def _convert(self, values: Array, present: Array | None) -> Patch:
        finite = np.isfinite(values) if values.dtype.kind == "f" else None
        valid = present
        if finite is not None:
            some: Array = np.asarray(finite.any(axis=0))
            valid = some if valid is None else np.logical_and(valid, some)
        pixels = np.empty((*values.shape[1:], 3), np.uint8)
        for channel in range(3):
            band = channel if len(values) == 3 else 0
            pixels[..., channel] = _to_uint8(values[band], self._limits(band))
            if finite is not None:
                pixels[..., channel][~finite[band]] = PADDING_RGB[channel]
        if valid is None:
            return Patch(pixels, np.broadcast_to(ALL_VALID, values.shape[1:]))
        if not valid.all():
            pixels[~valid] = PADDING_RGB
        return Patch(pixels, valid)

    def _limits(self, band: int) -> tuple[float, float] | None:
        scaling = self.info.scaling
        return None if scaling.rule == "as is" else (scaling.low[band], scaling.high[band])

    def _choose_scaling(self, given: tuple[float, float] | None) -> Scaling:
        count = len(self._bands)
        if given is not None:
            low, high = given
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise UsageError("The scale range must be two numbers, the lower first", got=f"{low:g} {high:g}")
            return Scaling("given", (low,) * count, (high,) * count)
        if self._raster.dtype == "uint8":
            return Scaling("as is", (0.0,) * count, (255.0,) * count)
        lows, highs = [], []
        for values in self._sample():
            low, high = np.percentile(values, PERCENTILES) if len(values) else (0.0, 1.0)
            lows.append(float(low))
            highs.append(float(high) if high > low else float(low) + 1.0)
        return Scaling(f"percentiles {PERCENTILES[0]:g}-{PERCENTILES[1]:g}", tuple(lows), tuple(highs))

    def _sample(self) -> list[Array]:
        """Return the valid values of each band, picked evenly over the parts of the scene that can be read."""
        height, width = _thinned(self.size, STATISTICS_PX)
        parts: list[list[Array]] = [[] for _ in self._bands]
        problem: SceneError | None = None
        for window, start, stop in _row_bands(self.size, height):
            try:
                values, present = self._raster.read(self._bands, window, shape=(stop - start, width))
            except SceneError as error:
                problem = error
                continue
            for band, part in zip(values, parts, strict=True):
                known = np.isfinite(band) if present is None else np.isfinite(band) & present
                part.append(band[known].astype(np.float64))
        if problem is not None and not parts[0]:
            raise problem
        return [np.concatenate(part) for part in parts]


def _in_blocks(length: int, block: int) -> int:
    """Return the greatest multiple of a block that is at most `length`, or `length` below one block."""
    return length // block * block if length > block else length


def _steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges that cover start to stop, cut at multiples of `step` where it is above 1."""
    while start < stop:
        end = min(stop, start + step - start % step)
        yield start, end
        start = end


def _choose_bands(raster: Raster, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    if asked is None:
        if not raster.bands:
            raise SceneError(f"{raster.name} has an alpha band and no other")
        return raster.bands[:3] if len(raster.bands) >= 3 else raster.bands[:1]
    if len(asked) not in {1, 3} or not set(asked) <= set(raster.bands):
        raise SceneError(
            f"These bands cannot be read from {raster.name}",
            got=" ".join(map(str, asked)) or "none",
            expected=f"one or three of {' '.join(map(str, raster.bands))}",
        )
    return asked


def _thinned(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    factor = min(1.0, longest_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _row_bands(size: tuple[int, int], rows: int) -> Iterator[tuple[Window, int, int]]:
    """Yield windows of the full width, and the rows from start to stop of a copy with `rows` rows they fill."""
    height, width = size
    count = min(STATISTICS_BANDS, rows)
    edges = [rows * part // count for part in range(count + 1)]
    for start, stop in pairwise(edges):
        top, bottom = height * start // rows, height * stop // rows
        yield Window(top, 0, bottom - top, width), start, stop


def _to_uint8(values: Array, limits: tuple[float, float] | None) -> Array:
    if limits is None:
        return values
    low, high = limits
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:  # a table is several times faster
        table = _scale(np.arange(np.iinfo(values.dtype).max + 1, dtype=np.float64), low, high)
        looked_up: Array = table[values]
        return looked_up
    return _scale(values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32), low, high)


def _scale(values: Array, low: float, high: float) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is filled by the caller
        scaled = np.nan_to_num((values - low) * (255.0 / (high - low)), nan=0.0, posinf=255.0, neginf=0.0)
    whole: Array = np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
    return whole
