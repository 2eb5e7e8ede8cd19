"""YOLO data sets: one text file per image, with boxes relative to the image size."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError
from ifkd.data.readers.reader_result import ReaderImage, ReaderObject, ReaderResult
from ifkd.data.readers.source_files import image_and_label_folders, image_size, images_by_stem, parse_float, read_lines

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


def read_yolo(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a YOLO data set.

    Args:
        root: Folder with `images` and `labels`.
        split: Subfolder of both; by default they have none.
        classes: Class names by number; by default the lines of the first existing file of `CLASS_FILES`.
    """
    images, labels = image_and_label_folders(root, ("labels",), split)
    names = _class_names(root) if classes is None else tuple(classes)
    found = []
    for stem, path in images_by_stem(images).items():
        size = image_size(path)
        label_file = labels / f"{stem}.txt"
        objects = tuple(_objects(label_file, size, names)) if label_file.is_file() else ()
        found.append(ReaderImage(stem, path.name, size, objects))
    return ReaderResult(images, names, tuple(found))


def _class_names(root: Path) -> tuple[str, ...]:
    for name in CLASS_FILES:
        if (root / name).is_file():
            return tuple(read_lines(root / name))
    raise DataError(
        f"{root} has no class names",
        expected="classes.txt or obj.names, one name a line",
        hint="Write the file, or give --classes FILE.",
    )


def _objects(path: Path, size: tuple[int, int], names: Sequence[str]) -> Iterator[ReaderObject]:
    height, width = size
    for line in read_lines(path):
        words = line.split()
        if len(words) not in {5, 6}:  # the sixth is a score
            raise DataError(f"{path} has a line without a box", got=repr(line[:80]), expected="class x y width height")
        number = parse_float(words[0], path, "class")
        if number not in range(len(names)):
            raise DataError(f"{path} has a class without a name", got=words[0], expected=f"0 to {len(names) - 1}")
        x, y, w, h = (parse_float(word, path, "box") for word in words[1:5])
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        yield ReaderObject(names[int(number)], box)
