"""check.json: what a data set holds and what was found in it."""

from ifkd.core.config import Schema
from ifkd.data.check.finding import Finding


class SourceRecord(Schema):
    """An annotation file that was looked at."""

    split: str
    path: str
    sha256: str
    images: str
    """The folder of its images."""


class SplitRecord(Schema):
    """What a split holds that can be used."""

    name: str
    listed: int
    """Images that the file lists."""
    images: int
    """Those that can be used."""
    empty_images: int
    """Those without an object."""
    objects: int
    """Boxes that can be used, ignored regions left out."""
    ignored: int
    """Ignored regions."""
    per_class: dict[str, int]
    """Objects of each class."""


class SizeRecord(Schema):
    """A size of image files."""

    height: int
    width: int
    images: int


class FormRecord(Schema):
    """A form of image files: format, type of values, bands."""

    form: str
    images: int


class SideRecord(Schema):
    """How large the objects of a split are; the side of an object is the root of its area, pixels."""

    split: str
    p05: float
    median: float
    p95: float
    small: float
    """Share of objects with an area below 32x32, as COCO counts them."""
    medium: float
    large: float
    """Share of objects with an area of 96x96 and above."""


class PairRecord(Schema):
    """Two images that are one, or look like one."""

    first: str
    first_split: str
    second: str
    second_split: str
    correlation: float
    """Of their sketches; 1 where they are equal pixel for pixel."""
    copy_: bool
    """They are equal pixel for pixel."""


class CleanedSplit(Schema):
    """A file of the cleaned copy."""

    name: str
    path: str
    images: int
    objects: int
    """Ignored regions included."""
    images_left_out: dict[str, int]
    """By the kind of finding; images whose entries could not be read at all are not counted."""
    boxes_left_out: dict[str, int]
    """By the kind of finding, of images that are kept."""
    boxes_cut: int


class CleanedRecord(Schema):
    """The cleaned copy."""

    folder: str
    images: str
    """The folder of its images."""
    splits: tuple[CleanedSplit, ...]


class CheckRecord(Schema):
    """All of it."""

    created: str
    """UTC, ISO 8601."""
    producer: str
    sources: tuple[SourceRecord, ...]
    clean: bool
    """Neither errors nor warnings were found."""
    splits: tuple[SplitRecord, ...]
    classes: tuple[str, ...]
    sizes: tuple[SizeRecord, ...]
    """The most frequent first."""
    forms: tuple[FormRecord, ...]
    """The most frequent first."""
    sides: tuple[SideRecord, ...]
    findings: tuple[Finding, ...]
    """The gravest first."""
    pairs: tuple[PairRecord, ...]
    """The first of them."""
    cleaned: CleanedRecord | None = None
