"""Read COCO files leniently: entries that the strict reader refuses become findings and are left out."""

import codecs
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from ifkd.core.errors import DataError
from ifkd.core.files import sha256_of
from ifkd.data.account import Outcomes
from ifkd.data.check.finding import Findings, first_few
from ifkd.data.coco import COCO_LISTS, image_folder, read_annotations
from ifkd.data.label_values import flag, label_id, number, text_or

Id = int | str
MAX_CONTIGUOUS_ID = 100_000
"""Unused ids are listed only below this."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxEntry:
    """An annotation of a listed image and category; `content` is its entry in the file."""

    content: dict[str, Any]
    category: Id
    bbox: tuple[float, float, float, float]
    """x, y, width, height, pixels; unchecked, may be NaN."""
    ignore: bool

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """x1 y1 x2 y2, pixels."""
        left, top, width, height = self.bbox
        return left, top, left + width, top + height


@dataclass(frozen=True, slots=True, eq=False)
class ImageEntry:
    """A listed image; `content` is its entry in the file."""

    content: dict[str, Any]
    id: Id
    name: str
    """Key `file_name`."""
    size: tuple[int, int] | None
    """Stated (height, width), pixels; None if they are invalid."""
    scene: str
    """Key `scene`, by default the file name."""
    boxes: tuple[BoxEntry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AnnotationFile:
    """Usable entries of a COCO file."""

    path: Path
    folder: Path
    """Image folder."""
    sha256: str
    content: dict[str, Any]
    """All of the file."""
    classes: dict[Id, str]
    """Category id -> name, by ascending id; names may repeat."""
    images: tuple[ImageEntry, ...]
    image_outcomes: Outcomes
    """Entries of images that are not among `images`."""
    object_outcomes: Outcomes
    """Annotations that are not among the boxes of `images`."""

    def count(self, key: str) -> int:
        """Return the number of entries of a list of the file."""
        entries = self.content.get(key)
        return len(entries) if isinstance(entries, list) else 0


def read_entries(path: Path, *, images: Path | None, split: str, findings: Findings) -> AnnotationFile:
    """Return the usable entries of a COCO file, by default with images in `images` beside it; others are findings.

    Raises:
        DataError: The file is missing, or is not a JSON object.
    """
    content = read_annotations(path)
    with path.open("rb") as stream:
        if stream.read(3) == codecs.BOM_UTF8:
            findings.add("byte_order_mark", split, str(path))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(f"{path} is not a COCO detection file", got=f"a {kind}", expected="a JSON object")
    return entries_of(content, path, images=images, split=split, findings=findings)


def entries_of(
    content: dict[str, Any], path: Path, *, images: Path | None, split: str, findings: Findings
) -> AnnotationFile:
    """Return the usable entries of the content of a COCO file; see `read_entries`."""
    for key in COCO_LISTS:
        if not isinstance(content.get(key), list):
            findings.add("lists_missing", split, f"{key} of {path.name}")
    reader = _Reader(content, split, findings)
    classes = reader.classes()
    entries_of_files = reader.images()
    ids = {entry.id for entries in entries_of_files for entry in entries}
    boxes = reader.boxes(ids, classes)
    folder = images or image_folder(path, content)
    merged = tuple(_merged(entries, boxes) for entries in entries_of_files)
    outcomes = {"image_outcomes": reader.image_outcomes, "object_outcomes": reader.object_outcomes}
    return AnnotationFile(path, folder, sha256_of(path), content, classes, merged, **outcomes)


def _merged(entries: list[ImageEntry], boxes: dict[Id, list[BoxEntry]]) -> ImageEntry:
    """Return the entries of one file as one entry with all their boxes."""
    ids = dict.fromkeys(entry.id for entry in entries)
    return replace(entries[0], boxes=tuple(box for image_id in ids for box in boxes.get(image_id, ())))


@dataclass(frozen=True, slots=True)
class _Reader:
    content: dict[str, Any]
    split: str
    findings: Findings
    image_outcomes: Outcomes = field(default_factory=Outcomes)
    object_outcomes: Outcomes = field(default_factory=Outcomes)

    def _add(self, kind: str, example: str) -> None:
        self.findings.add(kind, self.split, example)

    def _drop(self, outcomes: Outcomes, kind: str, example: str, *, count: int = 1) -> None:
        """Add a finding of entries that are left out."""
        self._add(kind, example)
        outcomes.drop(kind, example, count=count)

    def _entries(self, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of a list, each with its name for messages."""
        entries = self.content.get(key)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict):
                yield f"{key}[{index}]", entry
            else:
                outcomes = {"images": self.image_outcomes, "annotations": self.object_outcomes}.get(key, Outcomes())
                self._drop(outcomes, f"{key}_malformed", f"{key}[{index}] is {_described(entry)}")

    def classes(self) -> dict[Id, str]:
        """Return category id -> name of valid categories, by ascending id."""
        names: dict[Id, set[str]] = {}
        for where, entry in self._entries("categories"):
            category_id, name = label_id(entry.get("id")), entry.get("name")
            if category_id is None or not _is_name(name):
                stated = f"the id {_described(entry.get('id'))} and the name {_described(name)}"
                self._add("categories_malformed", f"{where} has {stated}")
            else:
                names.setdefault(category_id, set()).add(name)
                if isinstance(entry["id"], str):
                    self._add("ids_not_integers", f"category {entry['id']!r}")
        for category_id, several in names.items():
            if len(several) > 1:
                self._add("category_ids_not_unique", f"id {category_id!r}: {first_few(sorted(several))}")
        classes = {category_id: several.pop() for category_id, several in names.items() if len(several) == 1}
        classes = dict(sorted(classes.items(), key=lambda item: (isinstance(item[0], str), item[0])))
        for category_id in self._groups(classes):
            self._add("categories_of_groups", repr(classes.pop(category_id)))
        for name, count in Counter(classes.values()).items():
            if count > 1:
                ids = [category_id for category_id, one in classes.items() if one == name]
                self._add("category_names_not_unique", f"{name!r}: ids {first_few(ids)}")
        self._check_category_ids(classes)
        return classes

    def _groups(self, classes: dict[Id, str]) -> list[Id]:
        """Return the categories that are the supercategory of others and have no annotation, as Roboflow writes."""
        entries = [
            [entry for entry in listed if isinstance(entry, dict)]
            for listed in (self.content.get("categories"), self.content.get("annotations"))
            if isinstance(listed, list)
        ]
        if len(entries) < 2:
            return []
        pairs = [(one.get("supercategory"), one.get("name")) for one in entries[0]]
        parents = {parent for parent, name in pairs if isinstance(parent, str) and parent != name}
        used = {label_id(one.get("category_id")) for one in entries[1]}
        children = [one for one in classes if one in used]
        return [one for one, name in classes.items() if name in parents and one not in used and children]

    def _check_category_ids(self, classes: dict[Id, str]) -> None:
        numbers = {category_id for category_id in classes if isinstance(category_id, int)}
        if numbers and len(numbers) < max(numbers) < MAX_CONTIGUOUS_ID:
            for category_id in range(1, max(numbers)):
                if category_id not in numbers:
                    self._add("category_ids_not_contiguous", str(category_id))

    def images(self) -> list[list[ImageEntry]]:
        """Return the usable entries, grouped by file."""
        by_id: dict[Id, list[ImageEntry]] = {}
        for where, entry in self._entries("images"):
            image_id, name = label_id(entry.get("id")), entry.get("file_name")
            if image_id is None or not _is_name(name):
                stated = f"the id {_described(entry.get('id'))} and the file_name {_described(name)}"
                self._drop(self.image_outcomes, "images_malformed", f"{where} has {stated}")
            else:
                scene = text_or(entry.get("scene"), name)
                by_id.setdefault(image_id, []).append(ImageEntry(entry, image_id, name, _size(entry), scene, ()))
        by_name: dict[str, list[ImageEntry]] = {}
        for image_id, entries in by_id.items():
            names = dict.fromkeys(entry.name for entry in entries)
            if len(names) > 1:
                example = f"id {image_id!r}: {first_few(names)}"
                self._drop(self.image_outcomes, "image_ids_not_unique", example, count=len(entries))
                continue
            by_name.setdefault(entries[0].name, []).extend(entries)
            if isinstance(entries[0].content["id"], str):
                self._add("ids_not_integers", f"image {image_id!r}")
        for name, entries in by_name.items():
            for again in entries[1:]:
                self._drop(self.image_outcomes, "images_listed_twice", f"{name} (id {again.id!r})")
            if entries[0].size is None:
                height, width = (_described(entries[0].content.get(key)) for key in ("height", "width"))
                self._add("sizes_malformed", f"{name}: height {height}, width {width}")
        return list(by_name.values())

    def boxes(self, image_ids: set[Id], classes: dict[Id, str]) -> dict[Id, list[BoxEntry]]:
        """Return the usable annotations by image id."""
        boxes: dict[Id, list[BoxEntry]] = {}
        seen: set[Id] = set()
        for where, entry in self._entries("annotations"):
            annotation_id = label_id(entry.get("id"))
            name = f"annotation {annotation_id!r}" if annotation_id is not None else where
            if annotation_id is None or annotation_id in seen:
                self._add("annotation_ids_not_unique", f"{where}: {_described(entry.get('id'))}")
            else:
                seen.add(annotation_id)
            bbox = _bbox(entry.get("bbox"))
            image, category = label_id(entry.get("image_id")), label_id(entry.get("category_id"))
            if image is None or image not in image_ids:
                stated = _described(entry.get("image_id"))
                self._drop(self.object_outcomes, "annotations_of_unknown_image", f"{name} belongs to image {stated}")
            elif category is None or category not in classes:
                stated = _described(entry.get("category_id"))
                example = f"{name} has the category_id {stated}"
                self._drop(self.object_outcomes, "annotations_of_unknown_category", example)
            elif bbox is None:
                stated = _described(entry.get("bbox"))
                self._drop(self.object_outcomes, "annotations_malformed", f"{name} has the bbox {stated}")
            else:
                ignore = flag(entry.get("iscrowd"))
                if ignore is None:
                    self._add("flags_unclear", f"{name} has the iscrowd {_described(entry['iscrowd'])}")
                boxes.setdefault(image, []).append(BoxEntry(entry, category, bbox, bool(ignore)))
        return boxes


def _is_name(value: Any) -> TypeGuard[str]:
    """Return whether a value is text that is not blank and can be encoded."""
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _bbox(bbox: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    left, top, width, height = (number(value) for value in bbox)
    if left is None or top is None or width is None or height is None:
        return None
    return left, top, width, height


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = (number(entry.get(key)) for key in ("height", "width"))
    if height is None or width is None or not (height.is_integer() and width.is_integer()):
        return None
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _described(value: Any) -> str:
    """Return a JSON value, shortened."""
    return "nothing" if value is None else reprlib.repr(value)
