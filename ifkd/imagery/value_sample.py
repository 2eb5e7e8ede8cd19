"""Samples of a raster's values at full resolution, from which the contrast is set."""

from itertools import product

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window
from ifkd.imagery.contrast import UndeclaredNodata, ValueSample
from ifkd.imagery.raster import Raster
from ifkd.imagery.validity import valid_of_bands

SAMPLE_PX = 1024
"""Largest number of rows and of columns of a sample."""
SPANS, SPAN_PX = 12, 64
"""Largest number of windows per side, and their least length; a window is made of complete blocks of the file."""
TALLEST_BLOCK_PX = 1024
"""Larger blocks, such as one strip for the entire file, are read in part."""
MIN_VALID = 0.01
"""Fraction of valid pixels below which the whole raster is sampled, not only windows of it."""
FILL_VALUES = (-999.0, -9999.0, 9999.0, -99999.0, 99999.0, -32767.0, -32768.0, 65534.0)
HUGE = 1e15
"""Larger magnitudes mark missing floating-point numbers."""
END_FRACTION, PICTURE_VALUES = 0.005, 8
"""The value 0, the largest of the data type, or a negative one farther from all others than these from each other may
mark pixels without data if at least this fraction of the pixels has it, and if the others have more different values
than this."""
NEIGHBORS = 0.1
"""Largest number of pixels with values near a mark (within 1 % of the spread of the others), relative to its own."""


def sample_values(raster: Raster, bands: tuple[int, ...]) -> ValueSample:
    """Return valid values of each band from the readable parts of a raster, without undeclared nodata.

    Overviews are not used: they may belong to an earlier state of the file, and averages have another contrast.

    Raises:
        SceneError: No part can be read.
    """
    values, valid_fraction = _read_sample(raster, bands, spans=SPANS)
    if valid_fraction < MIN_VALID:
        values, _ = _read_sample(raster, bands, spans=None)
    kept: list[Array] = []
    left_out: dict[float, UndeclaredNodata] = {}
    for band in values:
        rest, found = without_undeclared_nodata(band, raster.dtype)
        kept.append(rest)
        for one in found:
            left_out[one.value] = max(one, left_out.get(one.value, one), key=lambda same: same.fraction)
    return ValueSample(tuple(kept), tuple(left_out.values()))


def sample_windows(raster: Raster, *, spans: int | None) -> list[Window]:
    """Return windows of whole blocks, evenly spaced, at most `spans` per side; they cover a small raster completely."""
    rows = _spans(raster.size[0], raster.block_rows, spans)
    columns = _spans(raster.size[1], raster.block_columns, spans)
    return [Window(top, left, height, width) for (top, height), (left, width) in product(rows, columns)]


def without_undeclared_nodata(values: Array, dtype: str) -> tuple[Array, tuple[UndeclaredNodata, ...]]:
    """Return float64 values without those at an end of their range that look like marks for pixels without data."""
    left_out: list[UndeclaredNodata] = []
    total = len(values)
    for _ in range(4):  # a file may have several marks
        mark = next((end for end in _ends(values) if _is_mark(values, end, dtype)), None)
        if mark is None:
            break
        same = values == mark
        left_out.append(UndeclaredNodata(mark, np.count_nonzero(same) / total))
        values = values[~same]
    return values, tuple(left_out)


def _ends(values: Array) -> tuple[float, ...]:
    return (float(values.min()), float(values.max())) if len(values) else ()


def _is_mark(values: Array, value: float, dtype: str) -> bool:
    """Return whether the least or largest value is a mark for pixels without data."""
    limits = None if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    is_end = value == 0 or (limits is not None and value == limits.max)
    is_fill = (
        value in FILL_VALUES or abs(value) >= HUGE or (limits is not None and limits.min < 0 and value == limits.min)
    )
    same = values == value
    count, rest = np.count_nonzero(same), values[~same]
    if not len(rest) or not (is_fill or count >= END_FRACTION * len(values)):
        return False
    low, high = np.percentile(rest, [2, 98])
    is_end = is_end or (value < 0 and np.abs(rest - value).min() > high - low)
    if not is_fill and (not is_end or len(np.unique(rest[:: max(1, len(rest) // 10_000)])) <= PICTURE_VALUES):
        return False
    width = max((high - low) / 100, 0.0 if limits is None else 1.0)
    return bool(np.count_nonzero(np.abs(rest - value) <= width) <= NEIGHBORS * count)


def _read_sample(raster: Raster, bands: tuple[int, ...], *, spans: int | None) -> tuple[list[Array], float]:
    """Return valid values of each band, and the fraction of pixels that are valid in some band."""
    windows = sample_windows(raster, spans=spans)
    row_step = max(1, sum({one.top: one.height for one in windows}.values()) // SAMPLE_PX)
    column_step = max(1, sum({one.left: one.width for one in windows}.values()) // SAMPLE_PX)
    parts: list[list[Array]] = [[] for _ in bands]
    problem: SceneError | None = None
    pixels = valid_pixels = 0
    for window in windows:
        try:
            values, mask = raster.read(bands, window)
        except SceneError as error:
            problem = error
            continue
        values = values[:, ::row_step, ::column_step]
        mask = None if mask is None else mask[..., ::row_step, ::column_step]
        known = valid_of_bands(values, mask)
        pixels += known[0].size
        valid_pixels += int(np.count_nonzero(known.any(axis=0)))
        for band, valid, part in zip(values, known, parts, strict=True):
            part.append(band[valid].astype(np.float64))
    if problem is not None and not pixels:
        raise problem
    return [np.concatenate(part) for part in parts], valid_pixels / pixels


def _spans(length: int, block: int, count: int | None) -> list[tuple[int, int]]:
    """Return (start, length) of at most `count` evenly spaced spans of complete blocks; None for all spans."""
    block = 1 if block > TALLEST_BLOCK_PX else block
    shortest = SPAN_PX if count is not None else max(SPAN_PX, length // SPAN_PX)
    step = -(-shortest // block) * block
    starts = np.arange(0, length, step)
    if count is not None and count < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, count).round().astype(int)]
    return [(int(start), min(step, length - int(start))) for start in starts]
