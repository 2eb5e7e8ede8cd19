"""Result of a reader: images, objects and classes of the source, the account of them, and their COCO content."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.errors import DataError
from ifkd.data.account import Account, Outcomes
from ifkd.data.check.box_checks import Corners, box_problem, clip_box
from ifkd.data.coco import BORDER_TOLERANCE_PX, box_entry, path_inside
from ifkd.data.oriented_labels import corner_polygon, oriented_boxes, polygon_points
from ifkd.data.readers import source_files as files
from ifkd.data.readers.pairing import FilePair
from ifkd.imagery.exif import exif_orientation, fits_displayed

MISFITS = ("boxes_without_area", "boxes_outside_image", "boxes_cross_border")
"""Outcomes of boxes in another form than the format's."""
ROUNDING_PX = 0.01
"""Boxes that are clipped by less count as unchanged."""
MAX_MISFITS = 0.5
"""Largest fraction of such boxes in a data set that is converted."""


@dataclass(frozen=True, slots=True)
class ReaderObject:
    """One labeled object."""

    name: str
    box: Corners
    """x1 y1 x2 y2, pixels."""
    ignore: bool = False
    """Whether it counts neither as object nor as background."""
    polygon: tuple[float, ...] | None = None
    """x1 y1 x2 y2 …, pixels, from which its oriented box is read; None if the source has only upright boxes."""
    change: str | None = None
    """Difference to what the source states, for the account."""


@dataclass(frozen=True, slots=True)
class ReaderImage:
    """One image."""

    file_name: str
    """Relative to the image folder; the COCO file keeps the name without extension as `source_id`."""
    size: tuple[int, int]
    """(height, width), pixels, of the image that its labels fit."""
    objects: tuple[ReaderObject, ...]


@dataclass(frozen=True, slots=True)
class LabelFile:
    """Entries of a label file."""

    entries: tuple[tuple[str, Any], ...]
    """Place of each in the file, and the entry."""
    states_size: bool = False
    """Whether the format states the image's size."""
    size: tuple[int, int] | None = None
    """Stated (height, width), pixels; None if it is absent or invalid."""


@dataclass(slots=True)
class SourceReader:
    """Reads pairs of images and label files, and accounts for each image and object."""

    folder: Path
    """Image folder."""
    parse: Callable[[Path], LabelFile]
    """Returns the entries of a label file, or raises `DataError` if it cannot be read."""
    read: Callable[[Any, tuple[int, int]], ReaderObject | str]
    """Entry and (height, width) of its image -> object, or the reason why it is left out."""
    needs_labels: bool = False
    """Whether images without a label file are left out; else they have no objects."""
    found: list[ReaderImage] = field(default_factory=list)
    images: Outcomes = field(default_factory=Outcomes)
    objects: Outcomes = field(default_factory=Outcomes)
    received: Counter[str] = field(default_factory=Counter)
    """Number of images and of objects that came in, and of images without label files."""

    def add(self, pairs: Iterable[FilePair]) -> None:
        """Read pairs."""
        for pair in pairs:
            self._add(pair)

    def _add(self, pair: FilePair) -> None:
        count = len(pair.images) or len(pair.labels) or 1
        self.received["images"] += count
        self.received["without labels"] += not pair.labels
        parsed, problem = LabelFile(()), None
        for path in pair.labels:
            try:
                parsed = self.parse(path)
                self.received["objects"] += len(parsed.entries)
            except DataError as error:
                parsed, problem = LabelFile(()), error.problem
                self.objects.examples.setdefault("labels_unreadable", [problem])
            if len(pair.labels) > 1 and parsed.entries:
                self.objects.drop("files_of_one_name", count=len(parsed.entries))
        if len(pair.images) > 1 or len(pair.labels) > 1:
            names = ", ".join(str(path) for path in [*pair.images, *pair.labels])
            self.images.drop("files_of_one_name", names, count=count)
            if len(pair.labels) == 1:
                self.objects.drop("files_of_one_name", count=len(parsed.entries))
            return
        where = str([*pair.labels, *pair.images, pair.name][0])
        size, reason = (None, "labels_unreadable") if problem is not None else self._size(pair, parsed)
        if size is None:
            self.images.drop(str(reason), problem or where)
            self.objects.drop(str(reason), count=len(parsed.entries))
            return
        if reason is not None:
            self.images.change(reason, where)
        objects = [self._object(f"{where}: {place}", entry, size) for place, entry in parsed.entries]
        name = pair.images[0].relative_to(self.folder).as_posix()
        self.found.append(ReaderImage(name, size, tuple(one for one in objects if one is not None)))

    def _size(self, pair: FilePair, labels: LabelFile) -> tuple[tuple[int, int] | None, str | None]:
        """Return the size of the image that the labels fit, and why it is another than stated; or None, and why."""
        stored = self._stored_size(pair)
        if isinstance(stored, str):
            return None, stored
        turned = fits_displayed(exif_orientation(pair.images[0]), stored, labels.size)
        if turned is None:
            return None, "orientation_unclear"
        size = stored[::-1] if turned else stored
        if not labels.states_size or labels.size == size:
            return size, None
        if labels.size is None:
            return size, "sizes_malformed"
        difference = max(abs(one - other) for one, other in zip(labels.size, size, strict=True))
        return (size if difference <= BORDER_TOLERANCE_PX or not labels.entries else None), "sizes_differ"

    def _stored_size(self, pair: FilePair) -> tuple[int, int] | str:
        """Return the (height, width) of an image file, or the reason why it cannot be used."""
        if not pair.images:
            return "files_missing"
        if self.needs_labels and not pair.labels:
            return "labels_missing"
        try:
            path_inside(self.folder, pair.images[0].relative_to(self.folder).as_posix())
        except DataError:
            return "files_outside_folder"
        try:
            return files.image_size(pair.images[0])
        except DataError:
            return "files_unreadable"

    def _object(self, where: str, entry: Any, size: tuple[int, int]) -> ReaderObject | None:
        one = self.read(entry, size)
        if isinstance(one, str):
            self.objects.drop(one, f"{where}: {' '.join(entry)}" if isinstance(entry, list) else where)
            return None
        box, reason = fitted(one.box, size)
        shown = f"{where}: [{', '.join(f'{value:.6g}' for value in one.box)}] in {size[1]}x{size[0]}"
        if box is None:
            self.objects.drop(str(reason), shown)
            return None
        polygon, difference = four_corners(one.polygon)
        changes = [change for change in (difference, one.change, reason) if change is not None]
        if changes:
            self.objects.change(", ".join(changes), where)
        return ReaderObject(one.name, box, ignore=one.ignore, polygon=polygon)

    def result(self, classes: Sequence[str], *notes: str) -> "ReaderResult":
        """Return what was read.

        Raises:
            DataError: No image or no object can be used, or most boxes have another form than the format's.
        """
        objects = sum(len(image.objects) for image in self.found)
        account = Account(
            images=self.images.tally(received=self.received["images"], written=len(self.found)),
            objects=self.objects.tally(received=self.received["objects"], written=objects),
        )
        refuse_useless(self.folder, account)
        without = self.received["without labels"]
        if without == account.images.received:
            raise DataError(f"{self.folder} has no label file of its images", hint="Check the format and the folders.")
        if repeated := [name for name, count in Counter(classes).items() if count > 1]:
            notes = (*notes, f"Classes of one name are merged: {', '.join(repeated)}.")
        if without and not self.needs_labels:
            notes = (*notes, f"{without} of {account.images.received} images have no label file: they have no objects.")
        return ReaderResult(self.folder, tuple(classes), tuple(self.found), account, notes)


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """A data set in another format."""

    folder: Path
    """Image folder."""
    classes: tuple[str, ...]
    """Class names by label."""
    images: tuple[ReaderImage, ...]
    account: Account
    notes: tuple[str, ...] = ()
    """Remarks on the conversion, for the user."""

    def to_coco(self) -> dict[str, Any]:
        """Return the content of a COCO file; category ids count from 1 in the order of the classes."""
        category_id = {name: label + 1 for label, name in enumerate(dict.fromkeys(self.classes))}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, image in enumerate(self.images, start=1):
            height, width = image.size
            names = {"id": image_id, "source_id": Path(image.file_name).stem, "file_name": image.file_name}
            images.append({**names, "height": height, "width": width})
            for one in image.objects:
                ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id[one.name]}
                polygon = {} if one.polygon is None else {"segmentation": [list(one.polygon)]}
                annotations.append({**ids, **box_entry(one.box, ignore=one.ignore), **polygon})
        categories = [{"id": number, "name": name} for name, number in category_id.items()]
        info = {"account": self.account.model_dump(mode="json")}
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def fitted(box: Corners, size: tuple[int, int]) -> tuple[Corners | None, str | None]:
    """Return a box clipped to its image of (height, width) and why it changed; or None and why it cannot be used."""
    kind = box_problem(box, size)
    if kind is not None and kind not in {"boxes_cross_border", "boxes_cross_border_slightly", "boxes_tiny"}:
        return None, kind
    clipped = clip_box(box, size)
    x1, y1, x2, y2 = (np.float32(value) for value in clipped)  # the precision of readers
    if x2 <= x1 or y2 <= y1:
        return None, "boxes_without_area"
    rounding = max(abs(one - other) for one, other in zip(clipped, box, strict=True)) < ROUNDING_PX
    return clipped, None if rounding else kind or "boxes_cross_border_slightly"


def enclosing_box(points: Sequence[float]) -> Corners:
    """Return the upright box around the corners x1 y1 x2 y2 … of a polygon."""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def four_corners(polygon: tuple[float, ...] | None) -> tuple[tuple[float, ...] | None, str | None]:
    """Return a polygon as the four corners of an object, and why they are others than stated."""
    if polygon is None:
        return None, None
    points = polygon_points(list(polygon))
    box = oriented_boxes([points])[0]
    if points is None or np.isnan(box).any():
        return None, "polygon_without_area"
    return (polygon, None) if len(points) == 4 else (tuple(corner_polygon(box)[0]), "smallest_rectangle_of_polygon")


def refuse_useless(source: Path, account: Account) -> None:
    """Refuse a data set of which no image or no object is left, or most of whose boxes do not fit their images.

    Raises:
        DataError: It is one.
    """
    lines = "\n  ".join(["", *account.lines()])
    for name, tally in (("image", account.images), ("object", account.objects)):
        if not tally.written and (tally.received or tally is account.images):
            hint = "Check the format, the folder and the classes."
            raise DataError(f"{source} has no {name} that can be used:{lines}", hint=hint)
    outcomes = Counter(account.objects.dropped)
    for reasons, count in account.objects.changed.items():
        outcomes.update(dict.fromkeys(reasons.split(", "), count))
    misfits = sum(outcomes[kind] for kind in MISFITS)
    if misfits > MAX_MISFITS * account.objects.received:
        hint = "They may be in another form: pixels or fractions, corners or widths. Check the format."
        raise DataError(f"{source} has {misfits} boxes that do not fit their images:{lines}", hint=hint)
