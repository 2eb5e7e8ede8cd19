"""Any known form of labeled images becomes one COCO file that `read_coco` reads."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ifkd.core.errors import DataError, UsageError
from ifkd.core.files import write_json
from ifkd.data.coco import check_content, read_json
from ifkd.data.readers.ship_classes import LEVEL_NAMES
from ifkd.data.readers.source import ReaderObject, ReaderResult, coco_content, read_lines
from ifkd.data.readers.text import read_dota, read_yolo
from ifkd.data.readers.voc import read_sar_aircraft, read_ship_rs, read_voc

Form = Literal["coco", "voc", "yolo", "dota", "shiprsimagenet", "sar-aircraft"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted."""

    path: Path
    """The COCO file."""
    images: Path
    """The folder of its images, which stay where they are."""
    counts: dict[str, int]
    """Objects by class, ignored ones left out."""
    image_count: int
    ignored: int
    notes: tuple[str, ...]


def convert(
    form: Form,
    root: Path,
    out: Path,
    *,
    split: str | None = None,
    level: int = 3,
    classes: Path | None = None,
) -> Conversion:
    """Write a data set as one COCO file.

    Args:
        form: How it is laid out.
        root: Its folder; a COCO json for `coco`, and for ShipRSImageNet's COCO form.
        out: The COCO file.
        split: Which of its splits; all when none is named.
        level: Of ShipRSImageNet's class tree, 0 to 3.
        classes: A text file with a class name on each line, by label, where the form does not fix them.

    Raises:
        DataError: A file is absent or holds mistakes; nothing is written.
        UsageError: An option does not fit the form.
    """
    if classes is not None and form not in {"voc", "yolo", "dota"}:
        raise UsageError(f"{form} has classes of its own", hint="Leave --classes out.")
    names = None if classes is None else tuple(read_lines(classes))
    notes: tuple[str, ...] = ()
    if form == "coco" or (form == "shiprsimagenet" and root.is_file()):
        content, images = _from_coco(root, ship_level=level if form == "shiprsimagenet" else None)
    else:
        source = _cut(_reader(form, root, split, level, names)())
        content, images, notes = coco_content(source), source.folder, source.notes
    dataset = check_content(out, content, images)
    write_json(out, content)
    return Conversion(
        path=out,
        images=images,
        counts=dataset.objects_per_class(),
        image_count=len(dataset),
        ignored=int(sum(image.ignore.sum() for image in dataset.images)),
        notes=notes,
    )


def _reader(
    form: Form, root: Path, split: str | None, level: int, classes: Sequence[str] | None
) -> Callable[[], ReaderResult]:
    readers: dict[str, Callable[[], ReaderResult]] = {
        "voc": lambda: read_voc(root, split=split, classes=classes),
        "yolo": lambda: read_yolo(root, split=split, classes=classes),
        "dota": lambda: read_dota(root, split=split, classes=classes),
        "shiprsimagenet": lambda: read_ship_rs(root, split=split, level=level),
        "sar-aircraft": lambda: read_sar_aircraft(root, split=split),
    }
    return readers[form]


def _cut(source: ReaderResult) -> ReaderResult:
    """Cut rotated boxes' bounds, which may leave the image at its border, to the image."""
    if not source.notes:
        return source
    images = []
    for image in source.images:
        height, width = image.size
        kept = []
        for one in image.objects:
            x1, y1, x2, y2 = one.box
            box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
            kept.append(ReaderObject(one.name, box, one.ignore))
        images.append(replace(image, objects=tuple(kept)))
    return replace(source, images=tuple(images))


def _from_coco(path: Path, *, ship_level: int | None) -> tuple[dict[str, Any], Path]:
    content = read_json(path)
    images = path.parent / "images"
    if ship_level is not None:
        stated = re.search(r"level_(\d)", path.name)
        if stated is not None and int(stated[1]) != ship_level:
            raise UsageError(f"{path.name} holds level {stated[1]}", got=f"--class-level {ship_level}")
        images = next(iter(sorted(path.parent.parent.glob("VOC_Format/JPEGImages"))), images)
        # the devkit writes the 50 types as categories whatever the level, and polygons as flat lists
        content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(LEVEL_NAMES[ship_level])]
        try:
            content["annotations"] = [
                {key: value for key, value in one.items() if key != "segmentation"} for one in content["annotations"]
            ]
        except (AttributeError, TypeError) as error:
            raise DataError(f"{path} is not a COCO detection file ({error})") from error
    try:
        content["images"] = [{"source_id": one["id"], **one} for one in content["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a COCO detection file (an image has no id)") from error
    return content, images
