"""VOC data sets, FAIR1M's form of them, and two benchmarks: SAR-AIRcraft-1.0 and ShipRSImageNet."""

import cmath
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ifkd.core.errors import DataError
from ifkd.core.files import folded
from ifkd.data.label_values import flag, integer, number
from ifkd.data.readers import source_files as files
from ifkd.data.readers.pairing import FilePair, is_image, pair_files
from ifkd.data.readers.reader_result import LabelFile, ReaderObject, ReaderResult, SourceReader, enclosing_box
from ifkd.data.readers.ship_classes import CLASS_PATHS, LEVEL_NAMES

SAR_AIRCRAFT_CLASSES = ("A220", "A320/321", "A330", "ARJ21", "Boeing737", "Boeing787", "other")
EDGES = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")
"""Center, sides and angle of roLabelImg's rotated boxes: radians of the width from right to down."""
POLYGON = tuple(f"{axis}{corner}" for corner in range(1, 5) for axis in "xy")
"""Corners of ShipRSImageNet's oriented boxes."""
MIN_CORNERS = 4
"""Corners of FAIR1M's boxes; most files repeat the first one."""


def read_voc(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a Pascal VOC data set, or the images in one list of `ImageSets/Main`; also with the labels of FAIR1M.

    Box edges are taken as stated; objects marked difficult are ignored regions. FAIR1M's objects are in `objects`, and
    have corners in `points` and a class in `possibleresult`. Classes are by default all that occur
    in any split, in alphabetical order.
    """
    reader = _read(root, split, lambda element: _class_in(element, classes))
    if classes is None:
        every = reader if split is None else _read(root, None, lambda element: _class_in(element, None))
        classes = files.natural_order(one.name for image in every.found for one in image.objects)
    return reader.result(classes)


def read_sar_aircraft(root: Path, *, split: str | None = None) -> ReaderResult:
    """Read SAR-AIRcraft-1.0, which has seven classes; the paper trains on the split `trainval`."""
    reader = _read(root, split, lambda element: _class_in(element, SAR_AIRCRAFT_CLASSES), ignore_difficult=False)
    return reader.result(SAR_AIRCRAFT_CLASSES)


def read_ship_rs(root: Path, *, split: str | None = None, level: int = 3) -> ReaderResult:
    """Read ShipRSImageNet's VOC format at a level of its class tree, 0 (ship or dock) to 3 (50 types)."""
    voc = files.find_folder(root, "VOC_Format") if (root / "VOC_Format").is_dir() else root
    reader = _read(voc, split, lambda element: _ship_class(element, level), ignore_difficult=False)
    return reader.result(LEVEL_NAMES[level])


def _read(
    root: Path, split: str | None, name_of: Callable[[Element], str | None], *, ignore_difficult: bool = True
) -> SourceReader:
    """Read the images of a split, or all; `name_of` returns the class of an object, None for an unknown one."""
    part = split if split is not None and (root / split).is_dir() else None
    folder, folders = files.image_and_label_folders(root, ("Annotations",), part, images=("JPEGImages", "images"))
    pairs = [pair for images, labels in folders for pair in pair_files(images, labels, ".xml")]
    if split != part:
        listed = _listed(root, str(split))
        known = {folded(pair.name) for pair in pairs}
        pairs = [pair for pair in pairs if folded(pair.name) in listed]
        absent = [name for key, name in listed.items() if key not in known]
        pairs += [FilePair(name, labels=[folders[0][1] / f"{name}.xml"]) for name in absent]
    reader = SourceReader(
        folder, _parse, lambda one, _: _object(one, name_of, ignore_difficult=ignore_difficult), needs_labels=True
    )
    reader.add(pairs)
    return reader


def _listed(root: Path, split: str) -> dict[str, str]:
    """Return the images of a split's list, without the extension that a list may have, by name for comparison."""
    files.require_name(split)
    sets = files.find_folder(root, "ImageSets")
    main = sets / "Main" if (sets / "Main").is_dir() else sets
    splits = sorted(one.stem for one in main.glob("*.txt"))
    if split not in splits:
        raise DataError(f"{main} has no list {split}.txt", expected=f"one of {', '.join(splits) or 'none'}")
    lines = files.read_lines(main / f"{split}.txt")
    # Lists of one class have a flag after the name.
    names = [Path(line.split()[0] if line.split()[-1] in {"1", "-1", "0"} else line) for line in lines]
    plain = [(name.with_suffix("") if name.suffix and is_image(name) else name).as_posix() for name in names]
    return {folded(name): name for name in plain}


def _parse(path: Path) -> LabelFile:
    root = files.read_xml(path)
    sides = [integer(root.findtext(f"size/{key}")) or 0 for key in ("height", "width")]
    objects = [*root.findall("object"), *root.findall("objects/object")]
    entries = tuple((f"object {count}", one) for count, one in enumerate(objects, start=1))
    return LabelFile(entries, states_size=True, size=(sides[0], sides[1]) if min(sides) > 0 else None)


def _object(
    element: Element, name_of: Callable[[Element], str | None], *, ignore_difficult: bool
) -> ReaderObject | str:
    """Return an object, or the reason why it is left out."""
    polygon = _numbers(element, "polygon", POLYGON) or _points(element)
    edges = _numbers(element, "bndbox", EDGES) or (enclosing_box(polygon) if polygon else ())
    rotated = _numbers(element, "robndbox", ROTATED)
    if rotated and all(map(math.isfinite, rotated)):
        x, y, width, height, angle = rotated
        along, across = cmath.rect(width / 2, angle), cmath.rect(height / 2, angle + math.pi / 2)
        corners = [complex(x, y) + one for one in (along + across, along - across, -along - across, across - along)]
        polygon = tuple(value for corner in corners for value in (corner.real, corner.imag))
        edges = enclosing_box(polygon)
    if not edges or not _name(element):
        return "annotations_malformed"
    name = name_of(element)
    if name is None:
        return "classes_unknown"
    difficult = flag(element.findtext("difficult"))
    change = "flags_unclear" if difficult is None and ignore_difficult else None
    if not polygon and any(element.find(key) is not None for key in ("polygon", "robndbox", "points")):
        change = "polygon_without_area"
    x1, y1, x2, y2 = edges
    return ReaderObject(name, (x1, y1, x2, y2), bool(difficult) and ignore_difficult, polygon or None, change)


def _numbers(element: Element, key: str, names: Sequence[str]) -> tuple[float, ...]:
    """Return the numbers of an element, or nothing if one is absent or not finite."""
    values = [number(element.findtext(f"{key}/{name}")) for name in names]
    return tuple(value for value in values if value is not None) if None not in values else ()


def _points(element: Element) -> tuple[float, ...]:
    """Return the corners x1 y1 x2 y2 … of FAIR1M's `points`, without the first one that is repeated at the end."""
    texts = [one.text or "" for one in element.findall("points/point")]
    values = [number(word) for text in texts for word in text.split(",")]
    known = tuple(value for value in values if value is not None)
    if len(known) < len(values) or len(values) != 2 * len(texts) or len(texts) < MIN_CORNERS:
        return ()
    return known[:-2] if known[-2:] == known[:2] else known


def _text(element: Element, key: str) -> str:
    return (element.findtext(key) or "").strip()


def _name(element: Element) -> str:
    return _text(element, "name") or _text(element, "possibleresult/name")


def _class_in(element: Element, classes: Sequence[str] | None) -> str | None:
    name = _name(element)
    return name if classes is None or name in classes else None


def _ship_class(element: Element, level: int) -> str | None:
    """Return a ship's class at a level: by the stated id, else by its type's place in the class tree."""
    names, stated = LEVEL_NAMES[level], _text(element, f"level_{level}")
    if stated:
        label = integer(stated)
        return names[label - 1] if label is not None and 1 <= label <= len(names) else None
    path = CLASS_PATHS.get(_text(element, "name"))
    return None if path is None else path[level]
