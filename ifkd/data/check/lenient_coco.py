"""COCO files read leniently: what the strict reader refuses is found, told and set aside."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from ifkd.core.errors import DataError
from ifkd.core.files import sha256_of
from ifkd.data.check.finding import Findings, listed
from ifkd.data.coco import LISTS, parse_json

Identity = int | str
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, eq=False)
class BoxEntry:
    """An annotation of an image that is listed, and of a category that is."""

    content: dict[str, Any]
    """As the file has it."""
    category: Identity
    """Id of its category."""
    bbox: tuple[float, float, float, float]
    """x, y, width, height, pixels; may be anything, NaN included."""
    ignore: bool

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2, pixels."""
        left, top, width, height = self.bbox
        return left, top, left + width, top + height


@dataclass(frozen=True, slots=True, eq=False)
class ImageEntry:
    """An image that a file lists."""

    content: dict[str, Any]
    """As the file has it."""
    id: Identity
    name: str
    """file_name."""
    size: tuple[int, int] | None
    """(height, width) as stated, pixels; None when they are no sizes."""
    place: str
    """What it shows: its `scene` where it has one, else its name."""
    boxes: tuple[BoxEntry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """What a COCO file holds that can be used."""

    path: Path
    folder: Path
    """Of its images."""
    sha256: str
    content: dict[str, Any]
    """As the file has it."""
    classes: dict[Identity, str]
    """Category id -> name, by rising id; two ids of one name are both here."""
    images: tuple[ImageEntry, ...]


def read_entries(path: Path, *, images: Path | None, split: str, findings: Findings) -> AnnotationFile:
    """Return what of a COCO file can be used, and add what cannot to `findings`.

    Args:
        path: The file.
        images: The folder of its images; by default `images` beside the file.
        split: What it is called.
        findings: Where mistakes are noted.

    Raises:
        DataError: The file is absent, is not JSON or is no object: nothing can be said of it.
    """
    marked = _starts_with_mark(path)
    if marked:
        findings.add("byte_order_mark", split, str(path))
    content = parse_json(path, encoding="utf-8-sig" if marked else "utf-8")
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is not a COCO detection file", got=f"a {type(content).__name__}", expected="a JSON object"
        )
    for key in LISTS:
        if not isinstance(content.get(key), list):
            findings.add("lists_absent", split, f"{key} of {path.name}")
    reading = _Reading(content, split, findings)
    classes = reading.classes()
    listed_images, known = reading.images()
    boxes = reading.boxes(known, classes)
    return AnnotationFile(
        path=path,
        folder=path.parent / "images" if images is None else images,
        sha256=sha256_of(path),
        content=content,
        classes=classes,
        images=tuple(_with_boxes(entries, boxes) for entries in listed_images),
    )


def _starts_with_mark(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(3) == BYTE_ORDER_MARK
    except (OSError, ValueError):
        return False  # the parser says what is wrong


def _with_boxes(entries: list[ImageEntry], boxes: dict[Identity, list[BoxEntry]]) -> ImageEntry:
    """Return the entries of one file as one, with the boxes of them all."""
    ids = dict.fromkeys(entry.id for entry in entries)
    return replace(entries[0], boxes=tuple(box for identity in ids for box in boxes.get(identity, ())))


@dataclass(frozen=True, slots=True)
class _Reading:
    content: dict[str, Any]
    split: str
    findings: Findings

    def _entries(self, key: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of a list, each with the words that name it."""
        found = self.content.get(key)
        for index, entry in enumerate(found if isinstance(found, list) else ()):
            where = f"{key}[{index}]"
            if isinstance(entry, dict):
                yield where, entry
            else:
                self.findings.add(kind, self.split, f"{where} is {_described(entry)}")

    def classes(self) -> dict[Identity, str]:
        """Return category id -> name of those that are clear."""
        found: list[tuple[Identity, str]] = []
        for where, entry in self._entries("categories", "categories_malformed"):
            identity, name = _identity(entry.get("id")), entry.get("name")
            if identity is None or not _is_name(name):
                told = f"{where} has the id {_described(entry.get('id'))} and the name {_described(name)}"
                self.findings.add("categories_malformed", self.split, told)
            else:
                found.append((identity, name))
        names: dict[Identity, set[str]] = {}
        for identity, name in found:
            names.setdefault(identity, set()).add(name)
        for identity, several in names.items():
            if len(several) > 1:
                told = f"id {identity!r}: {listed(sorted(several))}"
                self.findings.add("category_ids_repeated", self.split, told)
        classes = {identity: several.pop() for identity, several in names.items() if len(several) == 1}
        classes = dict(sorted(classes.items(), key=lambda item: (isinstance(item[0], str), item[0])))
        for name, count in Counter(classes.values()).items():
            if count > 1:
                ids = [identity for identity, one in classes.items() if one == name]
                self.findings.add("category_names_repeated", self.split, f"{name!r}: ids {listed(ids)}")
        self._note_ids(classes)
        return classes

    def _note_ids(self, classes: dict[Identity, str]) -> None:
        numbers = {identity for identity in classes if isinstance(identity, int)}
        for identity in classes:
            if isinstance(identity, str):
                self.findings.add("ids_no_number", self.split, f"category {identity!r}")
        if numbers and len(numbers) < max(numbers) < 100_000:
            for identity in range(1, max(numbers)):
                if identity not in numbers:
                    self.findings.add("category_ids_with_holes", self.split, str(identity))

    def images(self) -> tuple[list[list[ImageEntry]], set[Identity]]:
        """Return the usable entries, those of one file together, and their ids."""
        by_id: dict[Identity, list[ImageEntry]] = {}
        for where, entry in self._entries("images", "images_malformed"):
            identity, name = _identity(entry.get("id")), entry.get("file_name")
            if identity is None or not _is_name(name):
                told = f"{where} has the id {_described(entry.get('id'))} and the file_name {_described(name)}"
                self.findings.add("images_malformed", self.split, told)
            else:
                place = str(entry.get("scene", name))
                by_id.setdefault(identity, []).append(ImageEntry(entry, identity, name, _size(entry), place, ()))
        by_name: dict[str, list[ImageEntry]] = {}
        for identity, entries in by_id.items():
            names = dict.fromkeys(entry.name for entry in entries)
            if len(names) > 1:
                self.findings.add("image_ids_repeated", self.split, f"id {identity!r}: {listed(names)}")
                continue
            by_name.setdefault(entries[0].name, []).extend(entries)
            if isinstance(identity, str):
                self.findings.add("ids_no_number", self.split, f"image {identity!r}")
        for name, entries in by_name.items():
            for again in entries[1:]:
                self.findings.add("images_listed_twice", self.split, f"{name} (id {again.id!r})")
            if entries[0].size is None:
                self.findings.add("sizes_malformed", self.split, f"{name}: {_stated_size(entries[0].content)}")
        return list(by_name.values()), {entry.id for entries in by_name.values() for entry in entries}

    def boxes(self, known: set[Identity], classes: dict[Identity, str]) -> dict[Identity, list[BoxEntry]]:
        """Return the usable annotations by image id."""
        found: dict[Identity, list[BoxEntry]] = {}
        seen: set[Identity] = set()
        for where, entry in self._entries("annotations", "annotations_malformed"):
            identity = _identity(entry.get("id"))
            name = f"annotation {identity!r}" if identity is not None else where
            if identity is None or identity in seen:
                self.findings.add("annotation_ids_repeated", self.split, f"{where}: {_described(entry.get('id'))}")
            else:
                seen.add(identity)
            bbox = _bbox(entry.get("bbox"))
            image, category = _identity(entry.get("image_id")), _identity(entry.get("category_id"))
            if image is None or image not in known:
                told = f"{name} belongs to image {_described(entry.get('image_id'))}"
                self.findings.add("image_unknown", self.split, told)
            elif category is None or category not in classes:
                told = f"{name} has the category_id {_described(entry.get('category_id'))}"
                self.findings.add("category_unknown", self.split, told)
            elif bbox is None:
                told = f"{name} has the bbox {_described(entry.get('bbox'))}"
                self.findings.add("annotations_malformed", self.split, told)
            else:
                ignore = bool(entry.get("iscrowd", 0))
                found.setdefault(image, []).append(BoxEntry(entry, category, bbox, ignore))
        return found


def _is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is text that says something and can be written to a file again."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _identity(value: Any) -> Identity | None:
    """Return an id that can be told from others: a whole number, or text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) else None


def _number(value: Any) -> float | None:
    """Return a number, which text may state as well, as the strict reader takes it; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def _bbox(bbox: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    left, top, width, height = (_number(value) for value in bbox)
    if left is None or top is None or width is None or height is None:
        return None
    return left, top, width, height


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = (_number(entry.get(key)) for key in ("height", "width"))
    if height is None or width is None or not (height.is_integer() and width.is_integer()):
        return None
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _stated_size(entry: dict[str, Any]) -> str:
    return f"height {_described(entry.get('height'))}, width {_described(entry.get('width'))}"


def _described(value: Any) -> str:
    """Return a JSON value in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        parts = [_described(one) for one in value[:5]]
        return f"[{', '.join(parts)}{', …' if len(value) > 5 else ''}]" if len(value) < 50 else "a long list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "an enormous number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
