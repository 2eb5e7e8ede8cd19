"""COCO files of other tools, with mistakes: their usable entries, as the fixed copy of a check has them."""

import os
import re
from pathlib import Path
from typing import Any

from ifkd.core.errors import UsageError
from ifkd.data.account import Account
from ifkd.data.check.finding import Findings
from ifkd.data.check.fix import category_ids_of, fixed_file, reason_of
from ifkd.data.check.image_inspection import CheckedImage, InspectedFile, actual_name, inspect_file
from ifkd.data.check.lenient_coco import AnnotationFile, ImageEntry, entries_of
from ifkd.data.coco import read_coco_json
from ifkd.data.oriented_labels import polygon_points
from ifkd.data.readers.reader_result import fitted
from ifkd.data.readers.ship_classes import LEVEL_NAMES


def read_coco_leniently(path: Path, *, ship_level: int | None) -> tuple[dict[str, Any], Path, Account]:
    """Return the usable content of a COCO file, its image folder, and the account; each image gets a `source_id`.

    The images are in the folder `images` beside the file, or beside the file itself. Where none is found, they may be
    elsewhere, and their files are not checked.

    Raises:
        DataError: The file is missing or is not a COCO file, or its boxes have an unclear form.
    """
    content = read_coco_json(path)
    folders = [path.parent / "images", path.parent]
    if ship_level is not None:
        _set_ship_classes(path, content, ship_level)
        folders = [*sorted(path.parent.parent.glob("VOC_Format/JPEGImages")), *folders]
    file = entries_of(content, path, images=folders[0], split="", findings=Findings())
    folder = next((one for one in folders if any(_is_in(one, entry.name) for entry in file.images)), None)
    checked = [_checked(entry, file, folder) for entry in file.images]
    pairs = [(image, reason_of(image)) for image in checked]
    fixed = fixed_file(file, pairs, category_ids_of([file]), file.folder.resolve())
    images = [{"source_id": image["id"], **image} for image in fixed.content["images"]]
    return {**fixed.content, "images": images}, folder or folders[0], fixed.account


def _set_ship_classes(path: Path, content: dict[str, Any], level: int) -> None:
    """Set the classes of a level: the devkit lists the 50 types at every level, and writes polygons as flat lists."""
    stated = re.search(r"level_(\d)", path.name)
    if stated is not None and int(stated[1]) != level:
        raise UsageError(f"{path.name} has the classes of level {stated[1]}", got=f"--class-level {level}")
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(LEVEL_NAMES[level])]
    for annotation in content["annotations"] if isinstance(content["annotations"], list) else ():
        if isinstance(annotation, dict):
            polygon = annotation.pop("segmentation", None)
            if polygon_points(polygon) is not None:
                annotation["segmentation"] = polygon if isinstance(polygon[0], list) else [polygon]


def _is_in(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name) or actual_name(folder, name) is not None  # noqa: PTH113 - for every name


def _checked(entry: ImageEntry, file: AnnotationFile, folder: Path | None) -> CheckedImage:
    """Return an image with its file, which is checked if there is a `folder`, and with the findings of its boxes."""
    inspected = InspectedFile(None, None if entry.size else "sizes_malformed", size=entry.size)
    if folder is not None:
        inspected = inspect_file(entry, folder=folder, imagery=None)
    size = inspected.size or entry.size
    kinds = [None if size is None else fitted(box.corners, size)[1] for box in entry.boxes]
    return CheckedImage(entry, inspected, "", 0, tuple(file.classes[box.category] for box in entry.boxes), tuple(kinds))
