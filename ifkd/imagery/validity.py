"""Valid pixels of a raster: nodata values and masks of each band, and transparent colors of a palette."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.detections import Array

# A mask is bool [height, width]; or bool [bands, height, width] where some pixels have no data in a part of the bands.


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """Colors of a paletted raster."""

    colors: Array
    """uint8 [indices, 3]."""
    opaque: Array
    """bool [indices]."""

    @classmethod
    def of(cls, colormap: dict[int, tuple[int, int, int, int]]) -> "Palette":
        """Return the palette of GDAL's colormap, index -> RGBA; indices of up to 16 bits without a color are black."""
        colors, opaque = np.zeros((1 << 16, 3), np.uint8), np.ones(1 << 16, bool)
        for index, color in colormap.items():
            colors[index], opaque[index] = color[:3], color[3] > 0
        return cls(colors, opaque)

    @classmethod
    def of_gray(cls, bits: int, *, is_inverted: bool) -> "Palette":
        """Return the grays of values of at most 8 bits, where 0 is black, or white if they are inverted."""
        levels = np.linspace(0, 255, 1 << bits).round().astype(np.uint8)
        levels = levels[::-1] if is_inverted else levels
        return cls(np.repeat(levels[:, None], 3, axis=1), np.ones(len(levels), bool))


def nodata_mask(values: Array, nodata: Sequence[float | None]) -> Array | None:
    """Return the mask of values [bands, height, width] with one nodata value per band; None if all are valid.

    A pixel with the nodata value in some bands only is valid if the value may be a color: 0, and any 8-bit value.
    """
    typed = [typed_nodata(value, values.dtype) for value in nodata]
    if all(value is None for value in typed):
        return None
    known = np.ones(values.shape, bool)
    for band, value, target in zip(values, typed, known, strict=True):
        if value is not None:
            target[:] = ~np.isnan(band) if np.isnan(value) else band != value
    is_ambiguous = values.dtype == np.uint8 or all(value in {None, 0} for value in typed)
    return np.asarray(known.any(axis=0)) if is_ambiguous or len(known) == 1 else known


def combined(first: Array | None, second: Array | None) -> Array | None:
    """Return the mask of pixels that both masks have."""
    return second if first is None else first if second is None else first & second


def valid_of_bands(values: Array, mask: Array | None) -> Array:
    """Return bool [bands, height, width]: where the values are finite and not masked."""
    finite = np.isfinite(values) if values.dtype.kind in "fc" else np.ones(values.shape, bool)
    return finite if mask is None else finite & mask


def typed_nodata(value: float | None, dtype: np.dtype) -> float | int | None:
    """Return a nodata value as a number of the data type; None if the type cannot represent it."""
    if value is None:
        return None
    if dtype.kind not in "ui":
        return float(value) if not np.isfinite(value) or abs(value) <= np.finfo(dtype).max else None
    limits = np.iinfo(dtype)
    return int(value) if float(value).is_integer() and limits.min <= value <= limits.max else None
