"""Image files looked at one by one: what they are, whether they decode, and what tells them from each other."""

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from ifkd.core.detections import Array
from ifkd.core.errors import DataError
from ifkd.core.progress import track
from ifkd.core.workers import mapper
from ifkd.data.check.lenient_coco import AnnotationFile, ImageEntry
from ifkd.data.coco import inside
from ifkd.imagery.image_files import DRIVERS, Imagery, read_image

SKETCH_PX = 32
"""Side of the sketch by which pictures are compared."""
FLAT_STEPS = 2.0
"""A sketch that deviates less than this from a plane, in gray levels, shows nothing to compare."""
WORTH_PROCESSES = 400
"""So many images are looked at before starting further processes pays."""


@dataclass(frozen=True, slots=True, eq=False)
class FileFacts:
    """What a file is."""

    path: Path | None
    """Where it lies; None when its name leads nowhere it may."""
    problem: str | None = None
    """The kind of finding that keeps it from being used."""
    told: str = ""
    """What is wrong, in words."""
    renamed: str | None = None
    """The file's name in the image folder, where it differs from the entry's in upper and lower case."""
    size: tuple[int, int] | None = None
    """(height, width), pixels."""
    form: str = ""
    """Format, type of values and bands."""
    digest: str | None = None
    """SHA-256 of the decoded pixels."""
    sketch: Array | None = None
    """float32 [32, 32]: the picture at that size, gray, without its plane, of length 1; None for a flat one."""


def inspect_files(file: AnnotationFile, imagery: Imagery, *, workers: int | None = None) -> list[FileFacts]:
    """Return what each image file of an annotation file is, in order; `workers` processes share the work."""
    jobs = [(file.folder, entry, imagery) for entry in file.images]
    if workers is None:
        workers = (os.cpu_count() or 1) if len(jobs) >= WORTH_PROCESSES else 1
    with mapper(workers) as in_order:
        return list(track(in_order(_job, jobs), file.path.name, total=len(jobs), unit="image"))


def _job(job: tuple[Path, ImageEntry, Imagery]) -> FileFacts:
    folder, entry, imagery = job
    return inspect_file(folder, entry, imagery)


def inspect_file(folder: Path, entry: ImageEntry, imagery: Imagery) -> FileFacts:
    """Return what an image's file is; whatever is wrong with it is told, not raised."""
    try:
        path = inside(folder, entry.name)
    except DataError as error:
        return FileFacts(None, "files_outside", error.problem)
    renamed = None
    if not _is_file(path):
        found = _in_other_case(folder, entry.name)
        if found is None:
            return FileFacts(path, "files_absent", f"{entry.name} is not in {folder}")
        path, renamed = folder / found, found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that no pixel depends on
        return _decoded(path, entry.name, renamed, imagery)


def _decoded(path: Path, name: str, renamed: str | None, imagery: Imagery) -> FileFacts:
    size, form = _header(path)
    if size is not None and size[0] * size[1] > imagery.max_pixels:
        told = f"{name}: {size[1]}x{size[0]} (width x height), at most {imagery.max_pixels} pixels"
        return FileFacts(path, "files_too_large", told, renamed, size, form)
    try:
        pixels = read_image(path, imagery=imagery)
    except (DataError, MemoryError) as error:
        told = error.problem if isinstance(error, DataError) else f"{name} does not fit the memory"
        return FileFacts(path, "files_unreadable", told, renamed, size, form)
    size = (pixels.shape[0], pixels.shape[1])
    digest = hashlib.sha256(repr(size).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return FileFacts(
        path, None, "", renamed, size, form or "unknown format", digest=digest.hexdigest(), sketch=sketch(pixels)
    )


def sketch(pixels: Array) -> Array | None:
    """Return what a picture looks like in few numbers; see `FileFacts.sketch`.

    Brightness, contrast, size and compression hardly change it: it is the gray picture shrunk to 32x32 pixels, less
    the plane that fits it best (a gradient of light is no content), divided by its length.
    """
    small = Image.fromarray(pixels).convert("L").resize((SKETCH_PX, SKETCH_PX), Image.Resampling.BOX)
    values = np.asarray(small, np.float64)
    ramp = np.arange(SKETCH_PX) - (SKETCH_PX - 1) / 2
    slope = (ramp**2).sum() * SKETCH_PX
    values = values - values.mean()
    values -= (values * ramp).sum() / slope * ramp + ((values.T * ramp).sum() / slope * ramp)[:, None]
    length = float(np.sqrt((values**2).sum()))
    return None if length < FLAT_STEPS * SKETCH_PX else (values / length).astype(np.float32)


def _header(path: Path) -> tuple[tuple[int, int] | None, str]:
    """Return a file's (height, width) and form as GDAL tells them, or nothing."""
    quiet = logging.getLogger("rasterio")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # what is wrong is told by the finding
    try:
        with rasterio.open(path) as dataset:
            if dataset.driver not in DRIVERS or not dataset.count:
                return None, ""
            return (dataset.height, dataset.width), _form(dataset)
    except (RasterioError, OSError, ValueError, TypeError):
        return None, ""
    finally:
        quiet.setLevel(level)


def _form(dataset: Any) -> str:
    kinds = "/".join(dict.fromkeys(dataset.dtypes))
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    roles = dataset.colorinterp
    if roles[0] == ColorInterp.palette:
        bands = "palette"
    else:
        colors = sum(role != ColorInterp.alpha for role in roles)
        bands = f"{colors} band{'s' if colors != 1 else ''}{' and alpha' if colors < len(roles) else ''}"
    return f"{dataset.driver}, {kinds}{f' of {bits} bits' if bits else ''}, {bands}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _in_other_case(folder: Path, name: str) -> str | None:
    """Return the name of the only file that differs from `name` in upper and lower case alone."""
    try:
        wanted = Path(name)
        here = [one.name for one in (folder / wanted.parent).iterdir() if one.name.casefold() == wanted.name.casefold()]
        found = str(wanted.parent / here[0]) if len(here) == 1 else None
        return found if found is not None and _is_file(inside(folder, found)) else None
    except (OSError, ValueError, DataError):
        return None
