"""Exif orientation: viewers turn such an image, and its labels fit it either as stored or as displayed."""

import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ifkd.core.detections import Array

UPRIGHT = 1
"""Orientation of an image that is displayed as it is stored."""
QUARTER_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientations that exchange height and width, and what displays them."""


PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG."""
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
METADATA_KEYWORDS = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")


def exif_orientation(path: Path) -> int:
    """Return the Exif orientation of an image file, 1 to 8; 1 for files without one and files of other formats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes and damaged metadata, which do not matter here
            with path.open("rb") as file:
                if file.read(len(PNG)) == PNG and not _png_has_exif(file):
                    return UPRIGHT  # Pillow would decode all pixels to look behind them
            with Image.open(path) as image:
                found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError):
        return UPRIGHT
    return found if found in range(2, 9) else UPRIGHT


def _png_has_exif(file: BinaryIO) -> bool:
    """Return whether a PNG, after its signature, has a chunk that may state an orientation."""
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf":
            return True
        text = file.read(min(length, 32)) if kind in TEXT_CHUNKS else b""
        if text.startswith(METADATA_KEYWORDS):
            return True
        file.seek(length + 4 - len(text), os.SEEK_CUR)
    return False


def fits_displayed(orientation: int, stored: tuple[int, int], stated: tuple[int, int] | None) -> bool | None:
    """Return whether labels of a `stated` size (height, width) fit an image as displayed, not as stored.

    None if the size does not decide it: the image is turned by 180°, mirrored or square, or labels state no size.
    """
    if orientation == UPRIGHT:
        return False
    if orientation not in QUARTER_TURNS or stored[0] == stored[1] or stated is None:
        return None
    return stated == stored[::-1]


def displayed(pixels: Array, orientation: int) -> Array:
    """Return uint8 pixels [height, width, 3] as an orientation of `QUARTER_TURNS` displays them."""
    return np.asarray(Image.fromarray(pixels).transpose(QUARTER_TURNS[orientation]))


def stored_corners(
    corners: tuple[float, float, float, float], orientation: int, stored: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return a box x1 y1 x2 y2 of the displayed image in the stored one of (height, width)."""
    left, top, right, bottom = corners
    height, width = stored
    x1, x2 = (top, bottom) if orientation in {5, 6} else (width - bottom, width - top)
    y1, y2 = (left, right) if orientation in {5, 8} else (height - right, height - left)
    return x1, y1, x2, y2
