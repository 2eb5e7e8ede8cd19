"""Pascal VOC folders, and the two benchmarks that come in this form: SAR-AIRcraft-1.0 and ShipRSImageNet."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ifkd.core.errors import DataError
from ifkd.data.readers.ship_classes import CLASSES, LEVEL_NAMES
from ifkd.data.readers.source import (
    ReaderImage,
    ReaderObject,
    ReaderResult,
    folder_named,
    images_by_stem,
    in_natural_order,
    number_of,
    read_lines,
    read_xml,
    text_of,
    whole_number_of,
)

SAR_AIRCRAFT_CLASSES = ("A220", "A320/321", "A330", "ARJ21", "Boeing737", "Boeing787", "other")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a Pascal VOC folder; box edges are taken as written, objects marked difficult count as ignored.

    Args:
        root: Holds `JPEGImages`, `Annotations` and, for splits, `ImageSets/Main`.
        split: The list of images; all annotations when none is named.
        classes: Class names by label; by default all that any annotation of the folder names, in alphabetical order.

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    annotations = folder_named(root, ("Annotations",))
    stems = _stems(root, annotations, split)
    images = _read(root, annotations, stems, difficult_counts=False)
    if classes is None:
        every = images if split is None else _read(root, annotations, _all_stems(annotations), difficult_counts=False)
        classes = in_natural_order(one.name for image in every for one in image.objects)
    return ReaderResult(folder_named(root, ("JPEGImages",)), tuple(classes), images)


def read_sar_aircraft(root: Path, *, split: str | None = None) -> ReaderResult:
    """Read SAR-AIRcraft-1.0: VOC form, seven classes mapped by name; the paper trains on `trainval`.

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    annotations = folder_named(root, ("Annotations",))
    images = _read(root, annotations, _stems(root, annotations, split), difficult_counts=True)
    return ReaderResult(folder_named(root, ("JPEGImages",)), SAR_AIRCRAFT_CLASSES, images)


def read_ship_rs(root: Path, *, split: str | None = None, level: int = 3) -> ReaderResult:
    """Read ShipRSImageNet's VOC form at a level of its class tree, 0 (ship or dock) to 3 (50 types).

    Raises:
        DataError: A file is absent or holds mistakes.
    """
    voc = folder_named(root, ("VOC_Format",)) if (root / "VOC_Format").is_dir() else root
    annotations = folder_named(voc, ("Annotations",))
    stems = _stems(voc, annotations, split)
    images = _read(voc, annotations, stems, difficult_counts=True, level=level)
    return ReaderResult(folder_named(voc, ("JPEGImages",)), LEVEL_NAMES[level], images)


def _stems(root: Path, annotations: Path, split: str | None) -> list[str]:
    """Return the names of a split's images without extension; lists may have it or not."""
    if split is None:
        return _all_stems(annotations)
    if not split or Path(split).name != split or split in {".", ".."}:
        raise DataError("A split is named by its list, without folders", got=repr(split))
    sets = folder_named(root, ("ImageSets",))
    main = sets / "Main" if (sets / "Main").is_dir() else sets
    there = sorted(one.stem for one in main.glob("*.txt"))
    if split not in there:
        raise DataError(f"{main} has no list {split}.txt", expected=f"one of {', '.join(there) or 'none'}")
    images = {f".{suffix}" for suffix in ("jpg", "jpeg", "png", "bmp", "tif", "tiff")}
    names = [
        Path(line.split()[0] if line.split()[-1] in {"1", "-1", "0"} else line)
        for line in read_lines(main / f"{split}.txt")
    ]
    return [name.stem if name.suffix.lower() in images else name.name for name in names]


def _all_stems(annotations: Path) -> list[str]:
    return sorted(one.stem for one in annotations.iterdir() if one.suffix.lower() == ".xml")


def _read(
    root: Path, annotations: Path, stems: Sequence[str], *, difficult_counts: bool, level: int | None = None
) -> tuple[ReaderImage, ...]:
    files = {one.stem: one for one in annotations.iterdir() if one.suffix.lower() == ".xml"}
    pictures = images_by_stem(folder_named(root, ("JPEGImages",)))
    found = []
    for stem in stems:
        path = files.get(stem, annotations / f"{stem}.xml")
        element = read_xml(path)
        if stem not in pictures:
            raise DataError(f"{path} has no image", expected=f"{stem} with an image's extension in JPEGImages")
        size = element.find("size")
        if size is None:
            raise DataError(f"{path} does not state the image's <size>")
        height, width = (whole_number_of(text_of(size, key, path), path, key) for key in ("height", "width"))
        objects = tuple(_object(one, path, level, difficult_counts) for one in element.findall("object"))
        found.append(ReaderImage(stem, pictures[stem].name, (height, width), objects))
    return tuple(found)


def _object(element: Element, path: Path, level: int | None, difficult_counts: bool) -> ReaderObject:  # noqa: FBT001
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{path} has an <object> without <bndbox>")
    x1, y1, x2, y2 = (number_of(text_of(box, edge, path), path, edge) for edge in EDGES)
    difficult = (element.findtext("difficult") or "0").strip() not in {"", "0"}
    name = text_of(element, "name", path) if level is None else _ship_name(element, path, level)
    return ReaderObject(name, (x1, y1, x2, y2), ignore=difficult and not difficult_counts)


def _ship_name(element: Element, path: Path, level: int) -> str:
    """Return a ship's class at a level: by the id that the XML states, else by its type's place in the tree."""
    names = LEVEL_NAMES[level]
    stated = (element.findtext(f"level_{level}") or "").strip()
    if stated:
        number = whole_number_of(stated, path, f"level_{level}")
        if not 1 <= number <= len(names):
            raise DataError(f"{path} has a level_{level} that is no class", got=stated, expected=f"1 to {len(names)}")
        return names[number - 1]
    name = text_of(element, "name", path)
    for ship in CLASSES:
        if ship.name == name:
            return ship.at(level)
    raise DataError(f"{path} names a ship that ShipRSImageNet does not know", got=repr(name))
