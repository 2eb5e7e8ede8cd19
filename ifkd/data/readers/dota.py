"""DOTA data sets: one text file per image, with rotated boxes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError
from ifkd.data.readers import source_files as files
from ifkd.data.readers.reader_result import ReaderObject, ReaderResult, read_images

HEADERS = ("imagesource:", "gsd:")
"""First words of lines without an object."""


def read_dota(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a DOTA data set, by default with all classes that occur, in alphabetical order.

    Rotated boxes become their bounding boxes, clipped to the image; objects marked difficult are ignored regions.
    """
    images, labels = files.image_and_label_folders(root, ("labelTxt", "labels"), split)
    found = read_images(images, labels, _dota_objects)
    if classes is None:
        classes = files.natural_order(one.name for image in found for one in image.objects)
    note = "Rotated boxes became their upright bounding boxes, clipped to the image."
    return ReaderResult(images, tuple(classes), found, (note,))


def _dota_objects(path: Path, size: tuple[int, int]) -> Iterator[ReaderObject]:
    height, width = size
    expected = "x1 y1 … x4 y4 class difficult"
    for line in (line for line in files.read_lines(path) if not line.lower().startswith(HEADERS)):
        words = line.split()
        if len(words) not in {9, 10}:
            raise DataError(f"{path} has a line without a box", got=repr(line[:80]), expected=expected)
        corners = [files.parse_float(word, path, "corner") for word in words[:8]]
        x1, y1, x2, y2 = min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        yield ReaderObject(words[8], box, ignore=len(words) == 10 and words[9] != "0")
