"""Inspect image files one by one: readability, size, format, digest and thumbnail of the pixels."""

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from ifkd.core.detections import Array
from ifkd.core.errors import DataError
from ifkd.core.parallel import parallel_map
from ifkd.core.progress import track
from ifkd.data.check.finding import DROPS_BOX
from ifkd.data.check.lenient_coco import AnnotationFile, BoxEntry, ImageEntry
from ifkd.data.coco import path_inside
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.exif import UPRIGHT, exif_orientation, fits_displayed
from ifkd.imagery.image_files import DRIVERS, read_image

THUMBNAIL_PX = 32
FLAT_LEVELS = 2.0
"""Root mean square deviation from a plane, gray levels, below which a thumbnail counts as flat."""
MIN_IMAGES_FOR_WORKERS = 400
"""With fewer images, starting further processes takes longer than it saves."""


@dataclass(frozen=True, slots=True, eq=False)
class InspectedFile:
    """Properties of an image file."""

    path: Path | None
    """None if its name leads out of the image folder."""
    problem: str | None = None
    """Kind of finding for which the file is not usable."""
    message: str = ""
    actual_name: str | None = None
    """File name in the image folder, if the entry writes it otherwise."""
    size: tuple[int, int] | None = None
    """(height, width), pixels, of the image that the labels fit: as stored, or as displayed."""
    orientation: int = UPRIGHT
    """Exif orientation if the labels fit the image as displayed, else 1."""
    format: str = ""
    """File format, data type and bands."""
    sha256: str | None = None
    """SHA-256 of size and decoded pixels."""
    thumbnail: Array | None = None
    """float32 [32, 32], as `normalized_thumbnail` returns it."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckedImage:
    """An image and its findings."""

    entry: ImageEntry
    file: InspectedFile
    split: str
    source: int
    """Index of its annotation file."""
    classes: tuple[str, ...]
    """Class of each box."""
    box_findings: tuple[str | None, ...]
    """Kind of finding of each box; None for a valid one."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), pixels: the file's, else the stated one."""
        return self.file.size or self.entry.size

    @property
    def objects(self) -> list[tuple[BoxEntry, str]]:
        """Valid boxes without ignored regions, each with its class."""
        return [
            (box, name)
            for box, name, kind in zip(self.entry.boxes, self.classes, self.box_findings, strict=True)
            if kind not in DROPS_BOX and not box.ignore
        ]


def inspect_files(file: AnnotationFile, imagery: ImageryOptions, *, workers: int | None = None) -> list[InspectedFile]:
    """Return the properties of each image file of an annotation file, in order; see `check` for the workers."""
    count, inspect = len(file.images), partial(inspect_file, folder=file.folder, imagery=imagery)
    if workers is None:
        workers = (os.cpu_count() or 1) if count >= MIN_IMAGES_FOR_WORKERS else 1
    with parallel_map(workers) as in_order:
        return list(track(in_order(inspect, file.images), file.path.name, total=count, unit="image"))


def inspect_file(entry: ImageEntry, *, folder: Path, imagery: ImageryOptions | None) -> InspectedFile:
    """Return the properties of an image file; without `imagery`, its pixels are not read."""
    try:
        path = path_inside(folder, entry.name)
    except DataError as error:
        return InspectedFile(None, "files_outside_folder", error.problem)
    found = None
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, false for every invalid name
        found = actual_name(folder, entry.name)
        if found is None:
            return InspectedFile(path, "files_missing", f"{entry.name} is not in {folder}")
        path = folder / found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that does not affect pixels
        file = _header(path, found)
        if imagery is not None:
            file = _decoded(file, path, entry.name, imagery)
    if file.problem is not None or file.size is None:
        return file
    orientation = exif_orientation(path)
    turned = fits_displayed(orientation, file.size, entry.size)
    if turned is None:
        message = f"{entry.name} has the Exif orientation {orientation}"
        return replace(file, problem="orientation_unclear", message=message, sha256=None, thumbnail=None)
    return replace(file, size=file.size[::-1], orientation=orientation) if turned else file


def _decoded(file: InspectedFile, path: Path, name: str, imagery: ImageryOptions) -> InspectedFile:
    """Return the properties of a file with those of its pixels."""
    if file.size is not None and file.size[0] * file.size[1] > imagery.max_pixels:
        stated = f"{file.size[1]}x{file.size[0]} (width x height)"
        message = f"{name}: {stated}, at most {imagery.max_pixels} pixels"
        return replace(file, problem="files_too_large", message=message)
    try:
        pixels = read_image(path, imagery=imagery)
    except (DataError, MemoryError) as error:
        message = error.problem if isinstance(error, DataError) else f"{name} does not fit into memory"
        return replace(file, problem="files_unreadable", message=message)
    size = (pixels.shape[0], pixels.shape[1])
    digest = hashlib.sha256(repr(size).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    file_format, thumbnail = file.format or "unknown format", normalized_thumbnail(pixels)
    file = replace(file, problem=None, message="", size=size, format=file_format)
    return replace(file, sha256=digest.hexdigest(), thumbnail=thumbnail)


def normalized_thumbnail(pixels: Array) -> Array | None:
    """Return a gray thumbnail, float32 [32, 32], whose dot product with another is their correlation.

    The plane that fits best (brightness and a gradient of light) is subtracted, and the norm is 1, so that brightness,
    contrast, size and compression hardly change it. A flat image has none.
    """
    thumbnail = Image.fromarray(pixels).convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    values = np.asarray(thumbnail, np.float64)
    ramp = np.arange(THUMBNAIL_PX) - (THUMBNAIL_PX - 1) / 2
    slope = (ramp**2).sum() * THUMBNAIL_PX
    values = values - values.mean()
    values -= (values * ramp).sum() / slope * ramp + ((values.T * ramp).sum() / slope * ramp)[:, None]
    norm = float(np.sqrt((values**2).sum()))
    return None if norm < FLAT_LEVELS * THUMBNAIL_PX else (values / norm).astype(np.float32)


def _header(path: Path, found_name: str | None) -> InspectedFile:
    """Return the properties of a file that its header states."""
    unreadable = InspectedFile(path, "files_unreadable", f"{path} is not an image that can be read", found_name)
    logger = logging.getLogger("rasterio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the finding reports the error
    try:
        with rasterio.open(path) as dataset:
            if dataset.driver not in DRIVERS or not dataset.count:
                return unreadable
            size = (dataset.height, dataset.width)
            return InspectedFile(path, actual_name=found_name, size=size, format=_format(dataset))
    except (RasterioError, OSError, ValueError, TypeError):
        return unreadable
    finally:
        logger.setLevel(level)


def _format(dataset: Any) -> str:
    types = "/".join(dict.fromkeys(dataset.dtypes))
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    interpretations = dataset.colorinterp
    if interpretations[0] == ColorInterp.palette:
        bands = "palette"
    else:
        colors = sum(one != ColorInterp.alpha for one in interpretations)
        alpha = " and alpha" if colors < len(interpretations) else ""
        bands = f"{colors} band{'s' if colors != 1 else ''}{alpha}"
    return f"{dataset.driver}, {types}{f' of {bits} bits' if bits else ''}, {bands}"


def actual_name(folder: Path, name: str) -> str | None:
    """Return the name of the only file that a name can mean: in another case, with backslashes, with percent codes."""
    for other in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name).replace("\\", "/"))):
        try:
            path = Path(other)
            same = [one.name for one in (folder / path.parent).iterdir() if one.name.casefold() == path.name.casefold()]
            same = [path.name] if path.name in same else same
            if len(same) == 1 and path_inside(folder, found := str(path.parent / same[0])).is_file():
                return found
        except (OSError, ValueError, DataError):
            continue
    return None
