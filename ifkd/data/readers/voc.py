"""VOC data sets, and the two benchmarks in this format: SAR-AIRcraft-1.0 and ShipRSImageNet."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ifkd.core.errors import DataError
from ifkd.data.readers import source_files as files
from ifkd.data.readers.reader_result import ReaderImage, ReaderObject, ReaderResult
from ifkd.data.readers.ship_classes import CLASS_PATHS, LEVEL_NAMES

SAR_AIRCRAFT_CLASSES = ("A220", "A320/321", "A330", "ARJ21", "Boeing737", "Boeing787", "other")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a Pascal VOC data set, or the images in one list of `ImageSets/Main`.

    Box edges are taken as stated; objects marked difficult are ignored regions. Classes are by default all that occur
    in any split, in alphabetical order.
    """
    images = _read(root, _stems(root, split))
    if classes is None:
        every = images if split is None else _read(root, _stems(root, None))
        classes = files.natural_order(one.name for image in every for one in image.objects)
    return ReaderResult(files.find_folder(root, "JPEGImages"), tuple(classes), images)


def read_sar_aircraft(root: Path, *, split: str | None = None) -> ReaderResult:
    """Read SAR-AIRcraft-1.0, which has seven classes; the paper trains on the split `trainval`."""
    images = _read(root, _stems(root, split), ignore_difficult=False)
    return ReaderResult(files.find_folder(root, "JPEGImages"), SAR_AIRCRAFT_CLASSES, images)


def read_ship_rs(root: Path, *, split: str | None = None, level: int = 3) -> ReaderResult:
    """Read ShipRSImageNet's VOC format at a level of its class tree, 0 (ship or dock) to 3 (50 types)."""
    voc = files.find_folder(root, "VOC_Format") if (root / "VOC_Format").is_dir() else root
    images = _read(voc, _stems(voc, split), ignore_difficult=False, level=level)
    return ReaderResult(files.find_folder(voc, "JPEGImages"), LEVEL_NAMES[level], images)


def _stems(root: Path, split: str | None) -> list[str]:
    """Return the names of a split's images without extension, which the list may or may not have."""
    annotations = files.find_folder(root, "Annotations")
    if split is None:
        return sorted(one.stem for one in annotations.iterdir() if one.suffix.lower() == ".xml")
    files.require_name(split)
    sets = files.find_folder(root, "ImageSets")
    main = sets / "Main" if (sets / "Main").is_dir() else sets
    splits = sorted(one.stem for one in main.glob("*.txt"))
    if split not in splits:
        raise DataError(f"{main} has no list {split}.txt", expected=f"one of {', '.join(splits) or 'none'}")
    lines = files.read_lines(main / f"{split}.txt")
    # Lists of one class have a flag after the name.
    names = [Path(line.split()[0] if line.split()[-1] in {"1", "-1", "0"} else line) for line in lines]
    return [name.stem if name.suffix.lower() in files.IMAGE_SUFFIXES else name.name for name in names]


def _read(
    root: Path, stems: Sequence[str], *, ignore_difficult: bool = True, level: int | None = None
) -> tuple[ReaderImage, ...]:
    annotations = files.find_folder(root, "Annotations")
    xml_files = {one.stem: one for one in annotations.iterdir() if one.suffix.lower() == ".xml"}
    image_files = files.images_by_stem(files.find_folder(root, "JPEGImages"))
    images = []
    for stem in stems:
        path = xml_files.get(stem, annotations / f"{stem}.xml")
        element = files.read_xml(path)
        if stem not in image_files:
            raise DataError(f"{path} has no image", expected=f"{stem} with an image's extension in JPEGImages")
        size = element.find("size")
        if size is None:
            raise DataError(f"{path} does not state the image's <size>")
        height, width = (files.parse_int(files.text_of(size, key, path), path, key) for key in ("height", "width"))
        objects = []
        for one in element.findall("object"):
            name = files.text_of(one, "name", path) if level is None else _ship_name(one, path, level)
            difficult = (one.findtext("difficult") or "0").strip() not in {"", "0"}
            objects.append(ReaderObject(name, _box(one, path), ignore=difficult and ignore_difficult))
        images.append(ReaderImage(image_files[stem].name, (height, width), tuple(objects)))
    return tuple(images)


def _box(element: Element, path: Path) -> tuple[float, float, float, float]:
    box = element.find("bndbox")
    if box is None:
        raise DataError(f"{path} has an <object> without <bndbox>")
    x1, y1, x2, y2 = (files.parse_float(files.text_of(box, edge, path), path, edge) for edge in EDGES)
    return x1, y1, x2, y2


def _ship_name(element: Element, path: Path, level: int) -> str:
    """Return a ship's class at a level: by the stated id, else by its type's place in the class tree."""
    names = LEVEL_NAMES[level]
    stated = (element.findtext(f"level_{level}") or "").strip()
    if stated:
        number = files.parse_int(stated, path, f"level_{level}")
        if not 1 <= number <= len(names):
            raise DataError(f"{path} has an invalid class id level_{level}", got=stated, expected=f"1 to {len(names)}")
        return names[number - 1]
    name = files.text_of(element, "name", path)
    if name not in CLASS_PATHS:
        raise DataError(f"{path} names a type that ShipRSImageNet does not have", got=repr(name))
    return CLASS_PATHS[name][level]
