"""Select bands and stretch values to uint8 RGB, the same for training images and scenes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, PositiveInt

from ifkd.core.config import Schema
from ifkd.core.detections import Array
from ifkd.core.errors import SceneError

PADDING_RGB = (124, 116, 104)
"""Color of pixels without data: the mean color of ImageNet, which normalizes to about 0."""


AlphaBand = PositiveInt | Literal["none"]
"""Number of a band from 1, or `none`."""


def _one_or_three(bands: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if bands is not None and len(bands) not in {1, 3}:
        raise ValueError("must be one band, or three for red, green and blue (a band may be repeated)")
    return bands


def _increasing(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise ValueError("must be two finite numbers in increasing order")
    return limits


def _percent(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= limits[0] < limits[1] <= 100:
        raise ValueError("must be two percentages from 0 to 100 in increasing order")
    return limits


class ImageryOptions(Schema):
    """Options for reading images and scenes as uint8 RGB; export copies them from the recipe to the bundle."""

    bands: Annotated[tuple[PositiveInt, ...] | None, AfterValidator(_one_or_three)] = None
    """One or three band numbers from 1; a single band is repeated. By default those that the file declares as red,
    green and blue, else the first three, or the first."""
    alpha: AlphaBand | None = None
    """Band that is 0 where the image has no data, or `none`. By default the one that the file declares, if its values
    are a mask."""
    limits: Annotated[tuple[float, float] | None, AfterValidator(_increasing)] = None
    """Values that map to 0 and 255. By default uint8 is unchanged, and other types are stretched by percentiles."""
    percentiles: Annotated[tuple[float, float], AfterValidator(_percent)] = (2.0, 98.0)
    """Percentiles of the valid values of each band that map to 0 and 255, without `limits`."""
    stretch_uint8: bool = False
    """Stretch 8-bit images by percentiles as well."""
    nodata: float | None = None
    """Value of pixels without data, for files that do not define it."""
    max_pixels: PositiveInt = 100_000_000
    """Maximum size of training images, checked before decoding; scenes are read by window and have no limit."""


@dataclass(frozen=True, slots=True)
class UndeclaredNodata:
    """A value at the end of the value range that looks like a mark for pixels without data."""

    value: float
    fraction: float
    """Fraction of the pixels."""

    def remark(self, name: str) -> str:
        """Return a remark for the user on the image `name`."""
        text = f"{self.value:g}" if float(f"{self.value:g}") == self.value else repr(self.value)
        return (
            f"{100 * self.fraction:.2g} % of the pixels of {name} are {text}, which is not declared as nodata. The "
            f"contrast is set without them; if they have no data, use --nodata={text} (data.imagery.nodata)."
        )


@dataclass(frozen=True, slots=True)
class ValueSample:
    """A sample of an image's valid values."""

    bands: tuple[Array, ...]
    """float64 [n] per band."""
    left_out: tuple[UndeclaredNodata, ...] = ()
    """Values that are not in `bands`."""


@dataclass(frozen=True, slots=True)
class ContrastStretch:
    """Linear map of values to uint8 that sends `low` to 0 and `high` to 255, and saturates outside."""

    rule: str
    """`as is` (uint8), `given`, or for example `percentiles 2-98`."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """One value per band."""
    left_out: tuple[UndeclaredNodata, ...] = ()
    """Values that are not in the percentiles, although the file does not declare them as nodata."""


def select_bands(
    available: Sequence[int], imagery: ImageryOptions, *, name: str, rgb: tuple[int, int, int] | None = None
) -> tuple[int, ...]:
    """Return the one or three bands to read of an image `name`, which declares `rgb` as its red, green and blue.

    Raises:
        SceneError: The image does not have these bands.
    """
    if imagery.bands is None:
        if not available:
            raise SceneError(f"{name} has an alpha band and no other")
        return rgb or tuple(available[:3] if len(available) >= 3 else available[:1])
    if len(imagery.bands) not in {1, 3} or not set(imagery.bands) <= set(available):
        raise SceneError(
            f"These bands cannot be read from {name}",
            got=" ".join(map(str, imagery.bands)) or "none",
            expected=f"one or three of {' '.join(map(str, available))}",
        )
    return imagery.bands


def choose_stretch(
    imagery: ImageryOptions, *, dtype: str, bands: int, name: str, sample: Callable[[], ValueSample]
) -> ContrastStretch:
    """Return the contrast stretch of an image of `bands` bands; `sample` is called for percentiles only.

    Raises:
        SceneError: The limits do not fit the data type.
    """
    if imagery.limits is not None:
        low, high = imagery.limits
        if dtype == "uint8" and high > 255:
            raise SceneError(
                f"{name} has 8 bits, but the limits of its values are for another data type",
                got=f"{low:g} to {high:g}",
                expected="at most 255",
                hint="Set limits of 8-bit values, such as 0 to 255.",
            )
        return ContrastStretch("given", (low,) * bands, (high,) * bands)
    if dtype == "uint8" and not imagery.stretch_uint8:
        return ContrastStretch("as is", (0.0,) * bands, (255.0,) * bands)
    lows, highs = [], []
    sampled = sample()
    for values in sampled.bands:
        low, high = np.percentile(values, imagery.percentiles) if len(values) else (0.0, 1.0)
        lows.append(float(low))
        highs.append(float(high) if high > low else float(low) + 1.0)
    rule = f"percentiles {imagery.percentiles[0]:g}-{imagery.percentiles[1]:g}"
    return ContrastStretch(rule, tuple(lows), tuple(highs), sampled.left_out)


def to_rgb(values: Array, mask: Array | None, stretch: ContrastStretch) -> tuple[Array, Array]:
    """Return values [1 or 3, height, width] as uint8 [height, width, 3], and the valid pixels, bool [height, width].

    The mask of valid values is as `Raster.read` returns it. Values that are masked or not finite get the padding color.
    """
    known = np.isfinite(values) if values.dtype.kind == "f" else None
    if mask is not None and mask.ndim == 3:
        known, mask = mask if known is None else known & mask, None
    valid = np.broadcast_to(np.True_, values.shape[1:]) if mask is None else mask
    if known is not None:
        valid = valid & known.any(axis=0)
    pixels = np.empty((*values.shape[1:], 3), np.uint8)
    as_is = stretch.rule == "as is"
    for channel in range(3):
        band = channel if len(values) == 3 else 0
        pixels[..., channel] = values[band] if as_is else _to_uint8(values[band], stretch.low[band], stretch.high[band])
        if known is not None:
            pixels[..., channel][~known[band]] = PADDING_RGB[channel]
    if (mask is not None or known is not None) and not valid.all():
        pixels[~valid] = PADDING_RGB
    return pixels, valid


def decimated(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """Return the (height, width) of an image decimated to sides of at most `longest_px`."""
    factor = min(1.0, longest_px / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _to_uint8(values: Array, low: float, high: float) -> Array:
    if values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:  # a lookup table is several times faster
        return _stretched(np.arange(np.iinfo(values.dtype).max + 1, dtype=np.float64), low, high)[values]
    return _stretched(values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32), low, high)


def _stretched(values: Array, low: float, high: float) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # the caller replaces values that are not finite
        result = np.nan_to_num((values - low) * (255.0 / (high - low)), nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(result.clip(0.0, 255.0)).astype(np.uint8)
