"""YOLO and DOTA: one text file for each image. The images' sizes come from the images."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ifkd.core.errors import DataError, SceneError
from ifkd.data.readers.source import (
    ReaderImage,
    ReaderObject,
    ReaderResult,
    folder_named,
    images_by_stem,
    in_natural_order,
    number_of,
    read_lines,
)
from ifkd.imagery.raster import RasterFile

DOTA_HEADERS = ("imagesource:", "gsd:")


def read_yolo(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a YOLO folder: `images` and `labels`, in either of them a folder for each split where there are splits.

    Args:
        root: The folder.
        split: The sub-folder of both.
        classes: Names by class number; by default the lines of `classes.txt`, `obj.names` or `labels/classes.txt`.

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    images, labels = _sides(root, ("images",), ("labels",), split)
    names = _yolo_names(root) if classes is None else tuple(classes)
    found = []
    for stem, path in images_by_stem(images).items():
        size = _size_of(path)
        lines = labels / f"{stem}.txt"
        objects = tuple(_yolo_objects(lines, size, names)) if lines.is_file() else ()
        found.append(ReaderImage(stem, path.name, size, objects))
    return ReaderResult(images, names, tuple(found))


def read_dota(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a DOTA folder: `images` and `labelTxt`; rotated boxes become the upright boxes that hold them.

    Objects marked difficult count as ignored.

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    images, labels = _sides(root, ("images",), ("labelTxt", "labels"), split)
    found = []
    for stem, path in images_by_stem(images).items():
        lines = labels / f"{stem}.txt"
        objects = tuple(_dota_objects(lines)) if lines.is_file() else ()
        found.append(ReaderImage(stem, path.name, _size_of(path), objects))
    if classes is None:
        classes = in_natural_order(one.name for image in found for one in image.objects)
    note = "Rotated boxes became the upright boxes that hold them; a box that leaves its image was cut to it."
    return ReaderResult(images, tuple(classes), tuple(found), (note,))


def _sides(root: Path, images: Sequence[str], labels: Sequence[str], split: str | None) -> tuple[Path, Path]:
    """Return the folders of images and labels: SPLIT/images and SPLIT/labels, or images/SPLIT and labels/SPLIT."""
    if split is None:
        return folder_named(root, images), folder_named(root, labels)
    if not split or Path(split).name != split or split in {".", ".."}:
        raise DataError("A split is named by its folder, without others", got=repr(split))
    if (root / split).is_dir():
        return folder_named(root / split, images), folder_named(root / split, labels)
    return folder_named(folder_named(root, images), (split,)), folder_named(folder_named(root, labels), (split,))


def _size_of(path: Path) -> tuple[int, int]:
    try:
        raster = RasterFile(path)
    except SceneError as error:
        raise DataError(f"{path} is not an image that can be read ({error.problem})") from error
    raster.close()
    return raster.size


def _yolo_names(root: Path) -> tuple[str, ...]:
    for name in ("classes.txt", "obj.names", "labels/classes.txt"):
        if (root / name).is_file():
            return tuple(read_lines(root / name))
    raise DataError(
        f"{root} does not say what its class numbers mean",
        expected="classes.txt or obj.names, one name a line",
        hint="Write it, or give --classes FILE.",
    )


def _yolo_objects(path: Path, size: tuple[int, int], names: Sequence[str]) -> Iterator[ReaderObject]:
    height, width = size
    for line in read_lines(path):
        words = line.split()
        if len(words) not in {5, 6}:  # the sixth is a score
            raise DataError(f"{path} has a line that is no box", got=repr(line[:80]), expected="class x y width height")
        number = number_of(words[0], path, "class")
        if number not in range(len(names)):
            raise DataError(f"{path} has a class that has no name", got=words[0], expected=f"0 to {len(names) - 1}")
        x, y, w, h = (number_of(word, path, "box") for word in words[1:5])
        box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        yield ReaderObject(names[int(number)], box)


def _dota_objects(path: Path) -> Iterator[ReaderObject]:
    for line in read_lines(path):
        if line.lower().startswith(DOTA_HEADERS):
            continue
        words = line.split()
        if len(words) not in {9, 10}:
            raise DataError(
                f"{path} has a line that is no box", got=repr(line[:80]), expected="x1 y1 … x4 y4 class difficult"
            )
        corners = [number_of(word, path, "corner") for word in words[:8]]
        box = (min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2]))
        yield ReaderObject(words[8], box, ignore=len(words) == 10 and words[9] != "0")
