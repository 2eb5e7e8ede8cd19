"""DOTA data sets: one text file per image, with rotated boxes."""

from collections.abc import Sequence
from pathlib import Path

from ifkd.data.label_values import flag, number
from ifkd.data.readers import source_files as files
from ifkd.data.readers.pairing import pair_files
from ifkd.data.readers.reader_result import (
    LabelFile,
    ReaderObject,
    ReaderResult,
    SourceReader,
    enclosing_box,
)

HEADERS = ("imagesource:", "gsd:")
"""First words of lines without an object."""


def read_dota(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a DOTA data set, by default with all classes that occur, in alphabetical order.

    Objects keep their four corners beside their upright boxes; those marked difficult are ignored regions.
    """
    folder, pairs = files.image_and_label_folders(root, ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labels"), split)
    reader = SourceReader(folder, _parse, lambda words, _: _object(words, classes))
    for images, labels in pairs:
        reader.add(pair_files(images, labels, ".txt"))
    if classes is None:
        classes = files.natural_order(one.name for image in reader.found for one in image.objects)
    return reader.result(classes)


def _parse(path: Path) -> LabelFile:
    lines = files.read_numbered_lines(path)
    return LabelFile(tuple((place, line.split()) for place, line in lines if not line.lower().startswith(HEADERS)))


def _object(words: Sequence[str], classes: Sequence[str] | None) -> ReaderObject | str:
    """Return the object of a line `x1 y1 … x4 y4 class difficult`, or the reason why it is left out."""
    points = [value for word in words[:8] if (value := number(word)) is not None]
    if len(words) not in {9, 10} or len(points) < 8:
        return "annotations_malformed"
    if classes is not None and words[8] not in classes:
        return "classes_unknown"
    difficult = flag(words[9]) if len(words) == 10 else False
    change = "flags_unclear" if difficult is None else None
    return ReaderObject(words[8], enclosing_box(points), bool(difficult), tuple(points), change)
