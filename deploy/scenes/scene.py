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
from ifkd.tiling import TileGrid, Window

PERCENTILES = (2.0, 98.0)
STATISTICS_PX = 1024
"""Longest side of the thinned copy from which percentiles are taken."""
STATISTICS_BANDS = 16
"""Row bands in which a thinned copy is read, so that a damaged part does not hide the rest."""
PIECE_BYTES = 32 << 20
"""Raw values converted at a time."""
TALLEST_BLOCK_ROWS = 1024
"""Blocks taller than this (one strip for the whole file, say) are not waited for."""


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


@dataclass(frozen=True, slots=True, eq=False)
class TileRead:
    """One window of a grid, as it was read."""

    index: int
    """Place in the grid, row by row."""
    window: Window
    patch: Patch | None
    """None when it could not be read."""
    problem: str | None = None
    """Why not."""


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
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        valid = np.zeros((window.height, window.width), bool)
        top, left = max(window.top, 0), max(window.left, 0)
        bottom, right = min(window.bottom, height), min(window.right, width)
        rows = self._rows_of_a_piece(right - left)
        for start in range(top, bottom, rows) if right > left else ():
            stop = min(start + rows, bottom)
            part = Window(start, left, stop - start, right - left)
            patch = self._convert(*self._raster.read(self._bands, part))
            place = np.s_[start - window.top : stop - window.top, left - window.left : right - window.left]
            pixels[place], valid[place] = patch.pixels, patch.valid
        return Patch(pixels, valid)

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

    def close(self) -> None:
        """Close the file."""
        self._raster.close()

    def __enter__(self) -> "Scene":  # noqa: PYI034 - beartype cannot check Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows_of_a_piece(self, width: int) -> int:
        row_bytes = max(1, width * len(self._bands) * np.dtype(self._raster.dtype).itemsize)
        rows = max(1, PIECE_BYTES // row_bytes)
        block = self._raster.block_rows
        return rows // block * block if rows > block else rows

    def _convert(self, values: Array, present: Array | None) -> Patch:
        finite = np.isfinite(values) if values.dtype.kind == "f" else None
        valid = np.ones(values.shape[1:], bool) if present is None else present
        if finite is not None:
            valid = valid & finite.any(axis=0)
        pixels = np.empty((*values.shape[1:], 3), np.uint8)
        for channel in range(3):
            band = channel if len(values) == 3 else 0
            pixels[..., channel] = _to_uint8(values[band], self._limits(band))
            if finite is not None:
                pixels[..., channel][~finite[band]] = PADDING_RGB[channel]
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


def read_tiles(scene: Scene, grid: TileGrid) -> Iterator[TileRead]:
    """Yield the windows of a grid over a scene, row by row.

    A row of tiles is cut from one band of the scene's full width, and what two bands share is kept, so every
    strip or block of the file is decoded once. Where a band cannot be read, its tiles are tried one by one.
    """
    rows = _RollingRows(scene)
    index = 0
    for row in grid.rows():
        band: Patch | None
        try:
            band = rows.read(row[0].top, row[0].bottom)
        except SceneError:
            band = None
        for window in row:
            yield _tile_of_a_band(index, window, band) if band else _tile_alone(scene, index, window)
            index += 1


def _tile_of_a_band(index: int, window: Window, band: Patch) -> TileRead:
    """Cut a tile from a band that starts at its top; beyond the scene it is padded."""
    cut = Patch(
        band.pixels[: window.height, window.left : window.right],
        band.valid[: window.height, window.left : window.right],
    )
    if cut.valid.shape != (window.height, window.width):
        height, width = cut.valid.shape
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        pixels[:] = PADDING_RGB
        valid = np.zeros((window.height, window.width), bool)
        pixels[:height, :width], valid[:height, :width] = cut.pixels, cut.valid
        cut = Patch(pixels, valid)
    return TileRead(index, window, cut)


def _tile_alone(scene: Scene, index: int, window: Window) -> TileRead:
    try:
        return TileRead(index, window, scene.read(window))
    except SceneError as error:
        return TileRead(index, window, None, str(error))


class _RollingRows:
    """The rows of a scene that the present band of tiles needs, whole blocks at a time."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._top = 0
        self._held = Patch(np.zeros((0, scene.size[1], 3), np.uint8), np.zeros((0, scene.size[1]), bool))

    def read(self, top: int, bottom: int) -> Patch:
        """Return rows from `top` to `bottom` or the scene's end; `top` never falls from call to call."""
        height, width = self._scene.size
        held_bottom = self._top + len(self._held.valid)
        keep = max(0, held_bottom - top) if top >= self._top else 0
        start = top if keep == 0 else held_bottom
        stop = min(max(bottom, start), height)
        block = self._scene.block_rows
        if block <= TALLEST_BLOCK_ROWS:
            stop = min(-(-stop // block) * block, height)
        new = self._scene.read(Window(start, 0, stop - start, width)) if stop > start else None
        old = Patch(self._held.pixels[len(self._held.valid) - keep :], self._held.valid[len(self._held.valid) - keep :])
        if new is not None:
            old = Patch(np.concatenate([old.pixels, new.pixels]), np.concatenate([old.valid, new.valid]))
        self._top, self._held = top, old
        return Patch(old.pixels[: bottom - top], old.valid[: bottom - top])


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
