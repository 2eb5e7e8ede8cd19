"""YOLO data sets: one text file per image, with boxes relative to the image size."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError
from ifkd.data.readers import source_files as files
from ifkd.data.readers.reader_result import ReaderObject, ReaderResult, read_images

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


def read_yolo(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a YOLO data set; class names are by default the lines of the first existing file of `CLASS_FILES`."""
    images, labels = files.image_and_label_folders(root, ("labels",), split)
    names = _class_names(root) if classes is None else tuple(classes)
    found = read_images(images, labels, lambda path, size: _yolo_objects(path, size, names))
    return ReaderResult(images, names, found)


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
