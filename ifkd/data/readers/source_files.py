"""Read the untrusted files of a data set; every function raises `DataError` for what is missing or invalid."""

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from ifkd.core.errors import DataError, SceneError
from ifkd.core.files import read_text
from ifkd.data.readers.pairing import is_image
from ifkd.imagery.image_files import DRIVERS
from ifkd.imagery.raster import RasterFile

MAX_XML_BYTES = 64_000_000
"""Largest annotation file of one image; usual ones have a few thousand bytes."""


def read_xml(path: Path) -> Element:
    """Return the root element of an XML file; entities and document types are refused."""
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise DataError(f"{path} is too large for the annotation of one image", got=f"{path.stat().st_size} bytes")
        root: Element | None = parse_xml(path, forbid_dtd=True).getroot()
    except FileNotFoundError as error:
        raise DataError(f"There is no annotation {path}", hint="Check the list of images.") from error
    except DefusedXmlException as error:
        raise DataError(f"{path} defines entities or a document type, which an annotation never needs") from error
    except (ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not an XML file ({error})") from error
    if root is None:
        raise DataError(f"{path} is not an XML file (it is empty)")
    return root


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a text file, by line."""
    names = tuple(line.strip() for line in read_text(path).rstrip().split("\n"))
    if "" in names:
        hint = "Labels are numbers of lines: delete it, or write a name."
        raise DataError(f"{path} has no class name", got=f"an empty line {names.index('') + 1}", hint=hint)
    return names


def read_numbered_lines(path: Path) -> list[tuple[str, str]]:
    """Return the lines of a label file without empty ones, each after its place."""
    lines = enumerate(read_text(path, what="label file").split("\n"), start=1)
    return [(f"line {number}", line.strip()) for number, line in lines if line.strip()]


def find_folder(root: Path, *names: str) -> Path:
    """Return the first existing folder of `names` in `root`, regardless of case."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}", hint="Check the path.")
    folders = {one.name.lower(): one for one in sorted(root.iterdir()) if one.is_dir()}
    for name in names:
        if name.lower() in folders:
            return folders[name.lower()]
    raise DataError(f"{root} is not a data set of this format", expected=f"a folder {' or '.join(names)} in it")


def image_and_label_folders(
    root: Path, labels: tuple[str, ...], split: str | None, *, images: tuple[str, ...] = ("images",)
) -> tuple[Path, list[tuple[Path, Path]]]:
    """Return the image folder, and the folders of images and labels in it.

    These are images, images/SPLIT or SPLIT/images, and those of labels; else one folder with both, or several.
    """
    if split is not None:
        require_name(split)
        if not (root / split).is_dir():
            folders = find_folder(find_folder(root, *images), split), find_folder(find_folder(root, *labels), split)
            return folders[0], [folders]
        root /= split
    parts = [one for one in sorted(root.iterdir()) if one.is_dir()] if root.is_dir() else []
    complete = [one for one in (root, *parts) if _has_folder(one, images) and _has_folder(one, labels)]
    if complete and complete[0] != root:
        return root, [(find_folder(one, *images), find_folder(one, *labels)) for one in complete]
    both = [root] if _has_images(root, "*") else [one for one in parts if _has_images(one, "**/*")]
    if both and not complete:
        return root, [(one, one) for one in both]
    folders = find_folder(root, *images), find_folder(root, *labels)
    return folders[0], [folders]


def _has_folder(root: Path, names: tuple[str, ...]) -> bool:
    known = {name.lower() for name in names}
    return root.is_dir() and any(one.name.lower() in known and one.is_dir() for one in root.iterdir())


def _has_images(folder: Path, pattern: str) -> bool:
    return any(is_image(path) for path in folder.glob(pattern))


def require_name(split: str) -> None:
    """Check that a split is named without folders."""
    if not split or Path(split).name != split or split in {".", ".."}:
        raise DataError("The name of a split may not contain folders", got=repr(split))


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file, pixels."""
    try:
        raster = RasterFile(path, drivers=DRIVERS)
    except SceneError as error:
        raise DataError(f"{path} is not a readable image ({error.problem})") from error
    raster.close()
    return raster.size


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct class names in alphabetical order, with numbers in them ordered by value."""
    return tuple(sorted(set(names), key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]))
