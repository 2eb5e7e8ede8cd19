"""Values of any type and number of bands become uint8 RGB by stated limits: one way for training and for scenes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, PositiveInt

from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.core.tiling import Window

PADDING_RGB = (124, 116, 104)
"""ImageNet's mean color: what a tile holds where there is no image, so that it normalizes to about 0."""
ALL_VALID = np.ones((), bool)
"""Shown in every pixel where an image cannot have gaps, which costs no memory."""
STATISTICS_PX = 1024
"""Longest side of the thinned copy from which percentiles are taken."""
STATISTICS_BANDS = 16
"""Row bands in which a thinned copy is read, so that a damaged part does not hide the rest."""

Read = Callable[[Window, tuple[int, int]], tuple[Array, Array | None]]
"""(window, shape) -> values [bands, height, width] of the window thinned to shape, and where they are valid."""


def _one_or_three(bands: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if bands is not None and len(bands) not in {1, 3}:
        raise ValueError("must name one band, or three as red, green and blue (a band may be named twice)")
    return bands


def _rising(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise ValueError("must be two numbers, the lower first")
    return limits


def _percent(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] < limits[1] <= 100:
        raise ValueError("must be two percentages from 0 to 100, the lower first")
    return limits


class Imagery(Schema):
    """How images become what a network sees; it travels from the recipe to the bundle, and scenes are read by it."""

    bands: Annotated[tuple[PositiveInt, ...] | None, AfterValidator(_one_or_three)] = None
    """One or three band numbers, from 1; one is repeated. By default the first three, or the only one."""
    limits: Annotated[tuple[float, float] | None, AfterValidator(_rising)] = None
    """The values that become 0 and 255. By default uint8 stays as it is, and other types are scaled by percentiles."""
    percentiles: Annotated[tuple[float, float], AfterValidator(_percent)] = (2.0, 98.0)
    """Of an image's valid values, band by band: what becomes 0 and 255 where no limits are given."""
    stretch_uint8: bool = False
    """Scale 8-bit images by percentiles as well."""
    nodata: float | None = None
    """The value that means "no data", where a file does not say."""
    max_pixels: PositiveInt = 100_000_000
    """Images for training with more pixels are refused before they are decoded; scenes are read window by window."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How values become uint8: `low` is 0, `high` is 255, linear between, cut beyond; never wrapped."""

    rule: str
    """`as is` (uint8), `given`, or for example `percentiles 2-98`."""
    low: tuple[float, ...]
    """By band read."""
    high: tuple[float, ...]


def choose_bands(available: Sequence[int], imagery: Imagery, *, name: str) -> tuple[int, ...]:
    """Return the one or three bands to read of those an image has; `name` is the image's, for messages.

    Raises:
        SceneError: It has no such bands.
    """
    if imagery.bands is None:
        if not available:
            raise SceneError(f"{name} has an alpha band and no other")
        return tuple(available[:3] if len(available) >= 3 else available[:1])
    if len(imagery.bands) not in {1, 3} or not set(imagery.bands) <= set(available):
        raise SceneError(
            f"These bands cannot be read from {name}",
            got=" ".join(map(str, imagery.bands)) or "none",
            expected=f"one or three of {' '.join(map(str, available))}",
        )
    return imagery.bands


def choose_scaling(
    imagery: Imagery, *, dtype: str, bands: int, name: str, sample: Callable[[], Sequence[Array]]
) -> Scaling:
    """Return how an image's values are scaled.

    Args:
        imagery: The rule.
        dtype: The values' type.
        bands: How many bands are read.
        name: The image's, for messages.
        sample: Gives valid values of each band; called only where percentiles are wanted.

    Raises:
        SceneError: The limits are those of another type of image.
    """
    if imagery.limits is not None:
        low, high = imagery.limits
        if dtype == "uint8" and high > 255:
            raise SceneError(
                f"{name} has 8 bits, and the limits for its values are those of another type",
                got=f"{low:g} to {high:g}",
                expected="at most 255",
                hint="Give limits that fit its values, such as 0 to 255.",
            )
        return Scaling("given", (low,) * bands, (high,) * bands)
    if dtype == "uint8" and not imagery.stretch_uint8:
        return Scaling("as is", (0.0,) * bands, (255.0,) * bands)
    lows, highs = [], []
    for values in sample():
        low, high = np.percentile(values, imagery.percentiles) if len(values) else (0.0, 1.0)
        lows.append(float(low))
        highs.append(float(high) if high > low else float(low) + 1.0)
    rule = f"percentiles {imagery.percentiles[0]:g}-{imagery.percentiles[1]:g}"
    return Scaling(rule, tuple(lows), tuple(highs))


def sample(read: Read, size: tuple[int, int], *, bands: int) -> list[Array]:
    """Return valid values of each band, float64, picked evenly over the parts of an image that can be read.

    Raises:
        SceneError: No part can be read.
    """
    height, width = decimated(size, STATISTICS_PX)
    parts: list[list[Array]] = [[] for _ in range(bands)]
    problem: SceneError | None = None
    for window, start, stop in row_blocks(size, height):
        try:
            values, present = read(window, (stop - start, width))
        except SceneError as error:
            problem = error
            continue
        for band, part in zip(values, parts, strict=True):
            known = np.isfinite(band) if present is None else np.isfinite(band) & present
            part.append(band[known].astype(np.float64))
    if problem is not None and not parts[0]:
        raise problem
    return [np.concatenate(part) for part in parts]


def to_rgb(values: Array, present: Array | None, scaling: Scaling) -> tuple[Array, Array]:
    """Return uint8 [height, width, 3] of values [1 or 3, height, width], and bool [height, width]: where there is data.

    What is not valid, or not finite, gets the padding color. `present` None means that all is valid.
    """
    finite = np.isfinite(values) if values.dtype.kind == "f" else None
    valid = np.broadcast_to(ALL_VALID, values.shape[1:]) if present is None else present
    if finite is not None:
        valid = valid & finite.any(axis=0)
    pixels = np.empty((*values.shape[1:], 3), np.uint8)
    as_is = scaling.rule == "as is"
    for channel in range(3):
        band = channel if len(values) == 3 else 0
        pixels[..., channel] = values[band] if as_is else _to_uint8(values[band], scaling.low[band], scaling.high[band])
        if finite is not None:
            pixels[..., channel][~finite[band]] = PADDING_RGB[channel]
    if (present is not None or finite is not None) and not valid.all():
        pixels[~valid] = PADDING_RGB
    return pixels, valid


def decimated(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """Return the (height, width) of a copy none of whose sides is above `longest_px`."""
    factor = min(1.0, longest_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def row_blocks(size: tuple[int, int], rows: int) -> Iterator[tuple[Window, int, int]]:
    """Yield windows of the full width, and the rows from start to stop of a copy with `rows` rows they fill."""
    height, width = size
    count = min(STATISTICS_BANDS, rows)
    edges = [rows * part // count for part in range(count + 1)]
    for start, stop in pairwise(edges):
        top, bottom = height * start // rows, height * stop // rows
        yield Window(top, 0, bottom - top, width), start, stop


def _to_uint8(values: Array, low: float, high: float) -> Array:
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
