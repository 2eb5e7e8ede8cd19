"""YOLO and DOTA data sets: one text file per image, with boxes relative to the image size or rotated boxes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError
from ifkd.data.readers import source_files as files
from ifkd.data.readers.reader_result import ReaderImage, ReaderObject, ReaderResult

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
HEADERS = ("imagesource:", "gsd:")
"""First words of lines without an object in DOTA's files."""


def read_yolo(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a YOLO data set; class names are by default the lines of the first existing file of `CLASS_FILES`."""
    images, labels = files.image_and_label_folders(root, ("labels",), split)
    names = _class_names(root) if classes is None else tuple(classes)
    found = _read_images(images, labels, lambda path, size: _yolo_objects(path, size, names))
    return ReaderResult(images, names, found)


def read_dota(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a DOTA data set, by default with all classes that occur, in alphabetical order.

    Rotated boxes become their bounding boxes, clipped to the image; objects marked difficult are ignored regions.
    """
    images, labels = files.image_and_label_folders(root, ("labelTxt", "labels"), split)
    found = _read_images(images, labels, _dota_objects)
    if classes is None:
        classes = files.natural_order(one.name for image in found for one in image.objects)
    note = "Rotated boxes became their upright bounding boxes, clipped to the image."
    return ReaderResult(images, tuple(classes), found, (note,))


def _read_images(
    images: Path, labels: Path, objects_of: Callable[[Path, tuple[int, int]], Iterator[ReaderObject]]
) -> tuple[ReaderImage, ...]:
    """Return the images of a folder; `objects_of` reads a label file, given with the (height, width) of its image."""
    found = []
    for stem, path in files.images_by_stem(images).items():
        size, label_file = files.image_size(path), labels / f"{stem}.txt"
        objects = tuple(objects_of(label_file, size)) if label_file.is_file() else ()
        found.append(ReaderImage(path.name, size, objects))
    return tuple(found)


def _class_names(root: Path) -> tuple[str, ...]:
    for name in CLASS_FILES:
        if (root / name).is_file():
            return tuple(files.read_lines(root / name))
    raise DataError(
        f"{root} has no class names",
        expected="classes.txt or obj.names, one name a line",
        hint="Write the file, or give --classes FILE.",
    )


def _yolo_objects(path: Path, size: tuple[int, int], names: Sequence[str]) -> Iterator[ReaderObject]:
    height, width = size
    for line in files.read_lines(path):
        words = line.split()
        if len(words) not in {5, 6}:  # the sixth is a score
            raise DataError(f"{path} has a line without a box", got=repr(line[:80]), expected="class x y width height")
        number = files.parse_float(words[0], path, "class")
        if number not in range(len(names)):
            raise DataError(f"{path} has a class without a name", got=words[0], expected=f"0 to {len(names) - 1}")
        x, y, w, h = (files.parse_float(word, path, "box") for word in words[1:5])
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        yield ReaderObject(names[int(number)], box)


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
