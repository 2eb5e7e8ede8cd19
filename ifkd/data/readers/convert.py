"""Convert a data set of another format to one COCO file; its images are not copied."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ifkd.core.config import Schema
from ifkd.core.errors import DataError, UsageError
from ifkd.core.files import write_json
from ifkd.data.coco import parse_coco, read_coco_json
from ifkd.data.readers.dota import read_dota
from ifkd.data.readers.reader_result import ReaderResult
from ifkd.data.readers.ship_classes import LEVEL_NAMES
from ifkd.data.readers.source_files import read_lines
from ifkd.data.readers.voc import read_sar_aircraft, read_ship_rs, read_voc
from ifkd.data.readers.yolo import read_yolo

SourceFormat = Literal["coco", "voc", "yolo", "dota", "shiprsimagenet", "sar-aircraft"]


class Conversion(Schema):
    """Summary of a converted data set."""

    file: Path
    image_folder: Path
    images: int
    objects: dict[str, int]
    """Objects of each class, without ignored regions."""
    ignored: int
    notes: tuple[str, ...]
    """Changes that the conversion made."""


def convert(
    source_format: SourceFormat,
    root: Path,
    out: Path,
    *,
    split: str | None = None,
    class_level: int = 3,
    classes: Path | None = None,
) -> Conversion:
    """Write a data set, or one of its splits, as one COCO file.

    `root` is its folder, or the COCO file of `coco` and ShipRSImageNet; `class_level` is that of ShipRSImageNet's class
    tree, 0 to 3; `classes` has one class name a line, by label, for formats without fixed classes.

    Raises:
        DataError: A file is missing or has mistakes; nothing is written.
        UsageError: An option does not apply to the format.
    """
    if classes is not None and source_format not in {"voc", "yolo", "dota"}:
        raise UsageError(f"The format {source_format} has fixed classes", hint="Omit --classes.")
    names = None if classes is None else tuple(read_lines(classes))
    notes: tuple[str, ...] = ()
    if source_format == "coco" or (source_format == "shiprsimagenet" and root.is_file()):
        content, folder = _from_coco(root, ship_level=class_level if source_format == "shiprsimagenet" else None)
    else:
        result = _read(source_format, root, split, class_level, names)
        content, folder, notes = result.to_coco(), result.folder, result.notes
    dataset = parse_coco(out, content, folder)
    write_json(out, content)
    return Conversion(
        file=out,
        image_folder=folder,
        images=len(dataset),
        objects=dataset.objects_per_class(),
        ignored=int(sum(image.ignore.sum() for image in dataset.images)),
        notes=notes,
    )


def _read(kind: SourceFormat, root: Path, split: str | None, level: int, classes: Sequence[str] | None) -> ReaderResult:
    if kind == "shiprsimagenet":
        return read_ship_rs(root, split=split, level=level)
    if kind == "sar-aircraft":
        return read_sar_aircraft(root, split=split)
    read = {"voc": read_voc, "yolo": read_yolo, "dota": read_dota}[kind]
    return read(root, split=split, classes=classes)


def _from_coco(path: Path, *, ship_level: int | None) -> tuple[dict[str, Any], Path]:
    """Return the content of a COCO file with `source_id` in each image, and its image folder."""
    content = read_coco_json(path)
    images = path.parent / "images"
    if ship_level is not None:
        stated = re.search(r"level_(\d)", path.name)
        if stated is not None and int(stated[1]) != ship_level:
            raise UsageError(f"{path.name} has the classes of level {stated[1]}", got=f"--class-level {ship_level}")
        images = next(iter(sorted(path.parent.parent.glob("VOC_Format/JPEGImages"))), images)
        # The devkit lists the 50 types as categories at every level, and writes polygons as flat lists.
        content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(LEVEL_NAMES[ship_level])]
        try:
            for annotation in content["annotations"]:
                annotation.pop("segmentation", None)
        except (AttributeError, TypeError) as error:
            raise DataError(f"{path} is not a COCO detection file ({error})") from error
    try:
        content["images"] = [{"source_id": one["id"], **one} for one in content["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a COCO detection file (an image has no id)") from error
    return content, images
