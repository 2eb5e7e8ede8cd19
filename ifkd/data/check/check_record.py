"""Schema of check.json: contents of a data set, and findings; and the statistics in it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from ifkd.core.config import Schema
from ifkd.data.account import Account, printable
from ifkd.data.check.box_checks import clip_box
from ifkd.data.check.duplicates import DuplicatePair
from ifkd.data.check.finding import DROPS_BOX, Finding
from ifkd.data.check.image_inspection import CheckedImage

SMALL_PX, LARGE_PX = 32.0, 96.0
"""COCO's bounds between small, medium and large objects: square roots of their areas."""
MAX_DUPLICATES = 200
"""Pairs in the record."""


class SourceRecord(Schema):
    """An annotation file."""

    split: str
    path: str
    sha256: str
    images: str
    """Image folder."""


class ObjectSizeRecord(Schema):
    """Distribution of object sizes; an object's size is the square root of its area, pixels."""

    p05: float
    median: float
    p95: float
    small: float
    """Fraction of objects below 32 px, as in COCO."""
    medium: float
    large: float
    """Fraction of objects of 96 px and above."""


class SplitRecord(Schema):
    """Contents of a split."""

    name: str
    listed: int
    images: int
    """Usable images."""
    empty_images: int
    """Usable images without an object."""
    objects: int
    """Valid boxes, without ignored regions."""
    ignored: int
    per_class: dict[str, int]
    object_sizes: ObjectSizeRecord | None
    """None without objects."""


class DuplicateRecord(Schema):
    """Two images that are identical or look alike."""

    first: str
    first_split: str
    second: str
    second_split: str
    correlation: float
    identical: bool
    """As in `DuplicatePair`."""


class FixedSplit(Schema):
    """A file of the fixed copy."""

    name: str
    path: str
    account: Account
    """Outcomes of the entries of its source; reasons are kinds of findings."""


class FixedCopy(Schema):
    """The fixed copy."""

    folder: str
    images: str
    """Image folder."""
    splits: tuple[FixedSplit, ...]


class CheckRecord(Schema):
    """Content of check.json."""

    schema_version: Literal[3] = 3
    created: str
    """UTC, ISO 8601."""
    producer: str
    sources: tuple[SourceRecord, ...]
    clean: bool
    """Whether there are neither errors nor warnings."""
    splits: tuple[SplitRecord, ...]
    classes: tuple[str, ...]
    image_sizes: dict[str, int]
    """Number of images by WIDTHxHEIGHT, most frequent first."""
    image_formats: dict[str, int]
    """Number of images by file format, data type and bands, most frequent first."""
    findings: tuple[Finding, ...]
    """By severity."""
    duplicates: tuple[DuplicateRecord, ...]
    """At most 200."""
    fixed: FixedCopy | None = None


def split_record(split: str, listed: int, images: Sequence[CheckedImage], classes: Sequence[str]) -> SplitRecord:
    """Return the contents of a split, which lists `listed` images; only usable ones count."""
    usable = [image for image in images if image.split == split and image.file.problem is None]
    counts = Counter(name for image in usable for _, name in image.objects)
    boxes = [pair for image in usable for pair in zip(image.entry.boxes, image.box_findings, strict=True)]
    return SplitRecord(
        name=split,
        listed=listed,
        images=len(usable),
        empty_images=sum(not image.objects for image in usable),
        objects=sum(counts.values()),
        ignored=sum(box.ignore and kind not in DROPS_BOX for box, kind in boxes),
        per_class={name: counts[name] for name in classes},
        object_sizes=_object_sizes(split, images),
    )


def image_sizes(images: Sequence[CheckedImage]) -> dict[str, int]:
    """Return the number of image files by WIDTHxHEIGHT, most frequent first."""
    return _counts(f"{size[1]}x{size[0]}" for image in images if (size := image.file.size) is not None)


def image_formats(images: Sequence[CheckedImage]) -> dict[str, int]:
    """Return the number of image files by format, most frequent first."""
    return _counts(image.file.format for image in images if image.file.format)


def object_sides(images: Sequence[CheckedImage], split: str) -> list[tuple[float, float]]:
    """Return width and height, pixels, of the objects of a split, clipped to their images."""
    sides = []
    for image in images:
        if image.split != split or image.file.problem is not None:
            continue
        for box, _ in image.objects:
            x1, y1, x2, y2 = box.corners if image.size is None else clip_box(box.corners, image.size)
            sides.append((x2 - x1, y2 - y1))
    return sides


def duplicate_records(images: Sequence[CheckedImage], pairs: Sequence[DuplicatePair]) -> tuple[DuplicateRecord, ...]:
    """Return the first `MAX_DUPLICATES` pairs."""
    return tuple(
        DuplicateRecord(
            first=printable(images[pair.first].entry.name),
            first_split=images[pair.first].split,
            second=printable(images[pair.second].entry.name),
            second_split=images[pair.second].split,
            correlation=round(pair.correlation, 4),
            identical=pair.identical,
        )
        for pair in pairs[:MAX_DUPLICATES]
    )


def _object_sizes(split: str, images: Sequence[CheckedImage]) -> ObjectSizeRecord | None:
    sizes = np.array([math.sqrt(width * height) for width, height in object_sides(images, split)])
    if not len(sizes):
        return None
    low, median, high = (round(float(value), 2) for value in np.percentile(sizes, [5, 50, 95]))
    small, large = float((sizes < SMALL_PX).mean()), float((sizes >= LARGE_PX).mean())
    fractions = {"small": round(small, 4), "medium": round(1.0 - small - large, 4), "large": round(large, 4)}
    return ObjectSizeRecord(p05=low, median=median, p95=high, **fractions)


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))
