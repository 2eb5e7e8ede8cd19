"""Pair images and label files by their names relative to their folders."""

import mimetypes
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ifkd.core.files import folded

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".webp"})
CLASS_FILE = "classes.txt"
"""File of class names that label tools write beside the labels."""
METADATA_SUFFIX = ".aux.xml"
"""End of the names of GDAL's metadata, which are no labels."""


@dataclass(slots=True)
class FilePair:
    """Images and label files of one name; a valid pair has one image and at most one label file."""

    name: str
    """Path relative to the folder, without extension."""
    images: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)


def pair_files(images: Path, labels: Path, suffix: str) -> list[FilePair]:
    """Return the images and the label files (`suffix`) of two folders and of the folders in them, by name.

    Where names differ in upper and lower case or in their Unicode normalization only, they are one name.
    """
    found: dict[str, dict[str, FilePair]] = {}
    for path in _files(images):
        if is_image(path):
            _pair(found, path.relative_to(images)).images.append(path)
    for path in _files(labels):
        if path.suffix.lower() == suffix and not path.name.lower().endswith((CLASS_FILE, METADATA_SUFFIX)):
            _pair(found, path.relative_to(labels)).labels.append(path)
    return [pair for exact in found.values() for pair in _resolved(list(exact.values()))]


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its name, of a format that can be read or of another."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in IMAGE_SUFFIXES or guessed.startswith("image/")


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else ()


def _pair(found: dict[str, dict[str, FilePair]], path: Path) -> FilePair:
    name = path.with_suffix("").as_posix()
    return found.setdefault(folded(name), {}).setdefault(name, FilePair(name))


def _resolved(exact: list[FilePair]) -> list[FilePair]:
    """Return the pairs of names that differ in case only: as they are if all are complete, else as one."""
    if all(len(pair.images) == len(pair.labels) == 1 for pair in exact):
        return exact
    images = [path for pair in exact for path in pair.images]
    labels = [path for pair in exact for path in pair.labels]
    if images and labels:
        return [FilePair(exact[0].name, images, labels)]
    alone = [FilePair(exact[0].name, images=[path]) for path in images]
    return alone + [FilePair(exact[0].name, labels=[path]) for path in labels]
