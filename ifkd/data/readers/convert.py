"""Convert a data set of another format to one COCO file; its images are not copied."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ifkd.core.config import Schema
from ifkd.core.errors import UsageError
from ifkd.core.files import write_json
from ifkd.data.account import Account
from ifkd.data.coco import parse_coco
from ifkd.data.readers.coco_entries import read_coco_leniently
from ifkd.data.readers.dota import read_dota
from ifkd.data.readers.reader_result import ReaderResult, refuse_useless
from ifkd.data.readers.source_files import read_class_names
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
    account: Account
    notes: tuple[str, ...]
    """Remarks on the conversion."""


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

    Entries that cannot be used are left out; the account names them.

    Raises:
        DataError: A file is missing or is not of the format, or nothing can be used; nothing is written.
        UsageError: An option does not apply to the format.
    """
    if classes is not None and source_format not in {"voc", "yolo", "dota"}:
        raise UsageError(f"The format {source_format} has fixed classes", hint="Omit --classes.")
    names = None if classes is None else read_class_names(classes)
    notes: tuple[str, ...] = ()
    if source_format == "coco" or (source_format == "shiprsimagenet" and root.is_file()):
        if split is not None:
            raise UsageError("A COCO file is one split", got=f"--split {split}", hint="Omit --split.")
        level = class_level if source_format == "shiprsimagenet" else None
        content, folder, account = read_coco_leniently(root, ship_level=level)
        refuse_useless(root, account)
    else:
        result = _read(source_format, root, split, class_level, names)
        content, folder, notes, account = result.to_coco(), result.folder, result.notes, result.account
    dataset = parse_coco(out, content, folder)
    write_json(out, content)
    return Conversion(
        file=out,
        image_folder=folder,
        images=len(dataset),
        objects=dataset.objects_per_class(),
        ignored=int(sum(image.ignore.sum() for image in dataset.images)),
        account=account,
        notes=notes,
    )


def _read(kind: SourceFormat, root: Path, split: str | None, level: int, classes: Sequence[str] | None) -> ReaderResult:
    if kind == "shiprsimagenet":
        return read_ship_rs(root, split=split, level=level)
    if kind == "sar-aircraft":
        return read_sar_aircraft(root, split=split)
    read = {"voc": read_voc, "yolo": read_yolo, "dota": read_dota}[kind]
    return read(root, split=split, classes=classes)
