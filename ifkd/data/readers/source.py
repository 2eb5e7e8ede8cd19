"""What every reader answers with, and how files of unknown origin are opened."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from ifkd.core.errors import DataError
from ifkd.data.coco import inside

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jp2"})
MOST_XML_BYTES = 64_000_000
"""An annotation of one image is a few thousand bytes; a file above this is something else."""


@dataclass(frozen=True, slots=True)
class ReaderObject:
    """One labeled object as its source states it."""

    name: str
    """The class."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2, pixels."""
    ignore: bool = False
    """The source marks it as neither object nor background."""


@dataclass(frozen=True, slots=True)
class ReaderImage:
    """One image as its source states it."""

    source_id: str
    """What the source calls it; kept in the COCO file."""
    file_name: str
    """Inside the image folder."""
    size: tuple[int, int]
    """(height, width), pixels."""
    objects: tuple[ReaderObject, ...]


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """A data set in another form."""

    folder: Path
    """Of the images."""
    classes: tuple[str, ...]
    """By label."""
    images: tuple[ReaderImage, ...]
    notes: tuple[str, ...] = field(default=())
    """What a user should know of the conversion."""


def coco_content(source: ReaderResult) -> dict[str, Any]:
    """Return a source as the content of a COCO file; category ids count from 1 in the order of the classes.

    Raises:
        DataError: An object has a class that the classes do not name.
    """
    identity = {name: label + 1 for label, name in enumerate(source.classes)}
    unknown = sorted({one.name for image in source.images for one in image.objects} - identity.keys())
    if unknown:
        raise DataError(
            "The annotations name classes that are not among the given ones",
            got=", ".join(map(repr, unknown[:10])),
            expected=f"some of {', '.join(source.classes)}",
        )
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(source.images):
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": identity[one.name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(one.ignore),
                }
            )
    return {
        "images": [
            {
                "id": index + 1,
                "source_id": image.source_id,
                "file_name": image.file_name,
                "height": image.size[0],
                "width": image.size[1],
            }
            for index, image in enumerate(source.images)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in identity.items()],
    }


def read_xml(path: Path) -> Element:
    """Return the root of an XML file; one with entities or a document type of its own is refused.

    Raises:
        DataError: It is absent, broken, enormous or unsafe.
    """
    try:
        if path.stat().st_size > MOST_XML_BYTES:
            raise DataError(f"{path} is no annotation of one image", got=f"{path.stat().st_size} bytes")
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


def text_of(element: Element, key: str, path: Path) -> str:
    """Return the text of an element's child.

    Raises:
        DataError: It has none.
    """
    text = (element.findtext(key) or "").strip()
    if not text:
        raise DataError(f"{path} has a <{element.tag}> without <{key}>")
    return text


def number_of(text: str, path: Path, what: str) -> float:
    """Return a number that a file states as text.

    Raises:
        DataError: It is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{path} has a {what} that is no number", got=repr(text)) from error


def whole_number_of(text: str, path: Path, what: str) -> int:
    """Return a whole number that a file states as text, `7` or `7.0`.

    Raises:
        DataError: It is none.
    """
    number = number_of(text, path, what)
    if not number.is_integer():
        raise DataError(f"{path} has a {what} that is no whole number", got=repr(text))
    return int(number)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that hold something, stripped.

    Raises:
        DataError: It cannot be read as text.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}", hint="Check the path and the name of the split.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from error


def folder_named(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the folders that exists, upper and lower case being one.

    Raises:
        DataError: None does.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}", hint="Check the path.")
    there = {one.name.lower(): one for one in sorted(root.iterdir()) if one.is_dir()}
    for name in names:
        if name.lower() in there:
            return there[name.lower()]
    raise DataError(f"{root} is not a data set of this form", expected=f"a folder {' or '.join(names)} in it")


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by their names without extension, which may be in either case."""
    files = sorted(one for one in folder.iterdir() if one.suffix.lower() in IMAGE_SUFFIXES)
    return {one.stem: inside(folder, one.name) for one in files}


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in alphabetical order, numbers in them by value."""
    return tuple(sorted(set(names), key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]))
