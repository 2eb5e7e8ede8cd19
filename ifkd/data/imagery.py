"""Pixels of image files as detectors take them: uint8, three channels, at the recipe's scale."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ifkd.detections import Array
from ifkd.errors import DataError

PADDING_RGB = (124, 116, 104)
"""ImageNet's mean colour: what a tile holds where there is no image, so that it normalises to about 0."""


def read_image(path: Path, *, size: tuple[int, int] | None = None) -> Array:
    """Return an image file as uint8 [height, width, 3]; one channel is repeated.

    Args:
        path: The file.
        size: When given, the (height, width) it must have.

    Raises:
        DataError: The file is absent, broken, too large, not 8-bit or of another size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode not in {"L", "RGB", "RGBA", "P", "1"}:
                    raise DataError(f"{path} has pixels of mode {image.mode}", expected="8 bits, 1 or 3 channels")
                if size is not None and (image.height, image.width) != size:
                    raise DataError(
                        f"{path} is not the image its annotations describe",
                        got=f"{image.width}x{image.height} (width x height)",
                        expected=f"{size[1]}x{size[0]}",
                    )
                return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"There is no image {path}", mend="Check the image folder of the recipe.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is larger than an image for training may be ({error})") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image that can be read ({error})") from error


def resize(pixels: Array, size: tuple[int, int]) -> Array:
    """Return uint8 pixels [height, width, 3] at another (height, width): bilinear, averaging when shrinking.

    Training, evaluation and scenes all scale by this function, so that they cannot disagree.
    """
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def pad(pixels: Array, size: tuple[int, int]) -> Array:
    """Return `pixels` in the top left of a canvas of (height, width) filled with the mean colour."""
    if pixels.shape[:2] == size:
        return pixels
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = PADDING_RGB
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas
