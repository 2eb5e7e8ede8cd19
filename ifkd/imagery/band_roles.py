"""Roles of a raster's bands: which one is alpha, and which are red, green and blue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rasterio.enums import ColorInterp

from ifkd.core.detections import Array
from ifkd.core.errors import SceneError
from ifkd.imagery.contrast import ImageryOptions

OPAQUE_VALUES = (1, *(2**bits - 1 for bits in range(8, 33)))
"""Values of opaque pixels; those of 12 bits may be stored in 16."""
MAX_PARTLY_OPAQUE = 0.1
"""Largest fraction of an alpha band's nonzero values that differ from the opaque one, as at soft borders."""

NO_MASK = (
    "Band {band} of {name} is declared as alpha, but its values are no mask, and it is read as a band of the image. "
    "If it marks the valid pixels, use --alpha {band} (data.imagery.alpha)."
)
HIDES_COLORS = (
    "Band {band} of {name} is declared as alpha and hides about {fraction:.0%} of the pixels, which have various "
    "colors. If it is a band of the image, such as near infrared, use --alpha none (data.imagery.alpha)."
)


@dataclass(frozen=True, slots=True)
class BandRoles:
    """Roles of the bands of a raster; bands count from 1."""

    image: tuple[int, ...]
    """Bands with values of the image, in the file's order."""
    alpha: int | None = None
    """Band that is 0 where the image has no data."""
    rgb: tuple[int, int, int] | None = None
    """Bands that the file declares as red, green and blue, if it declares each once."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the bands that may be wrong, for the user."""


def roles_of(
    declared: Sequence[ColorInterp],
    imagery: ImageryOptions,
    *,
    name: str,
    sample: Callable[[tuple[int, ...]], Sequence[Array]] | None,
) -> BandRoles:
    """Return the roles of bands with these declared ones.

    A band that a file declares as alpha is one if its values are a mask, because GDAL declares the fourth of four 8-bit
    bands so by default. `sample` returns values of bands for that decision; None for a format whose fourth band is
    always alpha.

    Raises:
        SceneError: The chosen alpha band does not exist.
    """
    count = len(declared)
    remarks: tuple[str, ...] = ()
    alpha = next((band for band, role in enumerate(declared, start=1) if role == ColorInterp.alpha), None)
    if imagery.alpha is not None:
        alpha = None if imagery.alpha == "none" else imagery.alpha
        if alpha is not None and alpha > count:
            raise SceneError(f"{name} does not have this alpha band", got=alpha, expected=f"1 to {count}, or none")
    elif alpha in (imagery.bands or ()) or count == 1:
        alpha = None
    elif alpha is not None and sample is not None:
        colors = tuple(band for band in range(1, count + 1) if band != alpha)[:3]
        values = sample((alpha, *colors))
        if not _is_mask(values[0], values[1:]):
            remarks = (NO_MASK.format(band=alpha, name=name),)
            alpha = None
        elif _vary(values[1:], values[0] == 0):
            remarks = (HIDES_COLORS.format(band=alpha, name=name, fraction=(values[0] == 0).mean()),)
    single = {role: [band for band, one in enumerate(declared, start=1) if one == role] for role in set(declared)}
    red, green, blue = (single.get(role, []) for role in (ColorInterp.red, ColorInterp.green, ColorInterp.blue))
    rgb = (red[0], green[0], blue[0]) if len(red) == len(green) == len(blue) == 1 else None
    image = tuple(band for band in range(1, count + 1) if band != alpha)
    return BandRoles(image, alpha, rgb if rgb and alpha not in rgb else None, remarks)


def _is_mask(alpha: Array, colors: Sequence[Array]) -> bool:
    """Return whether an alpha band's values are a mask: 0, and one value for opaque pixels except at soft borders."""
    shown = alpha[alpha != 0]
    if not shown.size:
        return not _vary(colors, alpha == 0)
    return bool(np.isin(shown, OPAQUE_VALUES).mean() >= 1 - MAX_PARTLY_OPAQUE)


def _vary(colors: Sequence[Array], where: Array) -> bool:
    return bool(where.any()) and any(np.ptp(color[where]) > 0 for color in colors)
