"""DOTA data sets: one text file per image, with rotated boxes as four corners."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError
from ifkd.data.readers.reader_result import ReaderImage, ReaderObject, ReaderResult
from ifkd.data.readers.source_files import (
    image_and_label_folders,
    image_size,
    images_by_stem,
    natural_order,
    parse_float,
    read_lines,
)

HEADERS = ("imagesource:", "gsd:")


def read_dota(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a DOTA data set; rotated boxes become their bounding boxes, clipped to the image.

    Objects marked difficult are ignored regions.

    Args:
        root: Folder with `images` and `labelTxt`.
        split: Subfolder of both; by default they have none.
        classes: Class names by label; by default all that occur, in alphabetical order.
    """
    images, labels = image_and_label_folders(root, ("labelTxt", "labels"), split)
    found = []
    for stem, path in images_by_stem(images).items():
        size = image_size(path)
        label_file = labels / f"{stem}.txt"
        objects = tuple(_objects(label_file, size)) if label_file.is_file() else ()
        found.append(ReaderImage(stem, path.name, size, objects))
    if classes is None:
        classes = natural_order(one.name for image in found for one in image.objects)
    note = "Rotated boxes became their upright bounding boxes, clipped to the image."
    return ReaderResult(images, tuple(classes), tuple(found), (note,))


def _objects(path: Path, size: tuple[int, int]) -> Iterator[ReaderObject]:
    height, width = size
    for line in read_lines(path):
        if line.lower().startswith(HEADERS):
            continue
        words = line.split()
        if len(words) not in {9, 10}:
            raise DataError(
                f"{path} has a line without a box", got=repr(line[:80]), expected="x1 y1 … x4 y4 class difficult"
            )
        corners = [parse_float(word, path, "corner") for word in words[:8]]
        x1, y1, x2, y2 = min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        yield ReaderObject(words[8], box, ignore=len(words) == 10 and words[9] != "0")
