"""Schema of check.json: contents of a data set, and findings."""

from typing import Literal

from ifkd.core.config import Schema
from ifkd.data.check.finding import Finding


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
    """Listed images."""
    images: int
    """Usable images."""
    empty_images: int
    """Usable images without an object."""
    objects: int
    """Valid boxes, without ignored regions."""
    ignored: int
    """Ignored regions."""
    per_class: dict[str, int]
    """Objects of each class."""
    object_sizes: ObjectSizeRecord | None
    """None without objects."""


class DuplicateRecord(Schema):
    """Two images that are identical or look alike."""

    first: str
    first_split: str
    second: str
    second_split: str
    correlation: float
    """Correlation of their thumbnails."""
    identical: bool
    """Whether their pixels are identical."""


class FixedSplit(Schema):
    """A file of the fixed copy."""

    name: str
    path: str
    images: int
    objects: int
    """Ignored regions included."""
    images_left_out: dict[str, int]
    """By kind of finding; unreadable entries are not counted."""
    boxes_left_out: dict[str, int]
    """By kind of finding, in the images that are kept."""
    boxes_clipped: int


class FixedCopy(Schema):
    """The fixed copy."""

    folder: str
    images: str
    """Image folder."""
    splits: tuple[FixedSplit, ...]


class CheckRecord(Schema):
    """Content of check.json."""

    schema_version: Literal[2] = 2
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
