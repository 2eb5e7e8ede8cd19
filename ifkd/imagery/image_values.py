"""Data types, channels and value range of training images, so that scenes can be compared with them."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ifkd.core.config import Schema
from ifkd.core.errors import DataError, SceneError
from ifkd.imagery.contrast import ImageryOptions, select_bands
from ifkd.imagery.image_files import open_image
from ifkd.imagery.value_sample import sample_values

IMAGES = 16
"""Number of images that are read."""
MAX_REMARKS = 5
IMAGE_VALUES_KEY = "image_values"
"""Key of a checkpoint's provenance."""


class ImageValues(Schema):
    """Values of training images, before they are converted to uint8."""

    images: int
    """Number of images that were read."""
    dtypes: tuple[str, ...]
    channels: tuple[int, ...]
    """Numbers of different bands that are read from an image, 1 or 3."""
    low: float
    high: float
    """2nd and 98th percentile of the values of all images."""
    remarks: tuple[str, ...] = ()
    """Assumptions about the images that may be wrong, for the user; at most `MAX_REMARKS`."""

    @classmethod
    def of_provenance(cls, provenance: dict[str, Any]) -> "ImageValues | None":
        """Return the values of the images that a model was trained on, or None if its provenance has none."""
        content = provenance.get(IMAGE_VALUES_KEY)
        try:
            return None if content is None else cls.model_validate(content)
        except ValidationError as error:
            raise DataError(f"The provenance has an invalid {IMAGE_VALUES_KEY}", got=content) from error

    @property
    def described(self) -> str:
        """Data types and range as text."""
        return f"{' and '.join(self.dtypes)} with values of {self.low:g} to {self.high:g} (percentiles 2 and 98)"


def image_values(paths: Sequence[Path], imagery: ImageryOptions) -> ImageValues:
    """Return the values of at most `IMAGES` of the images, evenly spaced.

    Raises:
        DataError: An image cannot be read.
    """
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(IMAGES, len(paths))).astype(int)]
    dtypes, channels, parts, remarks = set[str](), set[int](), [], list[str]()
    for path in chosen:
        with closing(open_image(path, imagery=imagery)) as raster:
            try:
                bands = select_bands(raster.bands, imagery, name=str(path), rgb=raster.roles.rgb)
                sample = sample_values(raster, bands)
            except SceneError as error:
                raise DataError(error.problem, got=error.got, expected=error.expected, hint=error.hint) from error
        dtypes.add(raster.dtype)
        channels.add(len(set(bands)))
        parts += [band[:: max(1, len(band) // 10_000)] for band in sample.bands]
        remarks += [*raster.remarks, *(one.remark(raster.name) for one in sample.left_out)]
    values = np.concatenate(parts)
    low, high = np.percentile(values, (2, 98)) if len(values) else (0.0, 0.0)
    return ImageValues(
        images=len(chosen),
        dtypes=tuple(sorted(dtypes)),
        channels=tuple(sorted(channels)),
        low=float(low),
        high=float(high),
        remarks=tuple(remarks[:MAX_REMARKS]),
    )
