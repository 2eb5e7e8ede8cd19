"""A cleaned copy of a data set: files that the strict reader takes, and a record of what was left out."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd import __version__
from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_folder, make_folder, write_json
from ifkd.data.check.box_checks import cut
from ifkd.data.check.check import Checked, CheckedImage, rank
from ifkd.data.check.check_record import CleanedRecord, CleanedSplit
from ifkd.data.check.finding import DROPS_BOX
from ifkd.data.check.lenient_coco import AnnotationFile, BoxEntry, Identity
from ifkd.data.coco import COCO_LISTS, parse_coco

CUT = frozenset({"boxes_overshoot", "boxes_reach_out"})
"""Kinds of findings for which a box is cut to its image."""


@dataclass(frozen=True, slots=True, eq=False)
class _Cleaned:
    """A file of the copy before it is written."""

    name: str
    content: dict[str, Any]
    images_left_out: Counter[str]
    boxes_left_out: Counter[str]
    boxes_cut: int


def write_cleaned(checked: Checked, folder: Path, *, names: Sequence[str], copy_images: bool = False) -> CleanedRecord:
    """Write a cleaned copy of a data set into `folder`, whole or not at all, and return its record.

    Args:
        checked: The data set.
        folder: Where; it must be absent or empty.
        names: Of each annotation file, its name in the copy, without an ending.
        copy_images: Copy the images as well; else they stay where they are, and a reader is told their folder.

    Raises:
        OutputError: The folder holds something, or cannot be written.
    """
    require_free(folder)
    images = _common_folder(checked)
    kept = _kept(checked)
    categories = _categories(checked.files)
    cleaned = [
        _cleaned(name, index, checked, kept=kept, categories=categories, images=images)
        for index, name in enumerate(names)
    ]
    for one in cleaned:  # what is written can be read
        parse_coco(folder / f"{one.name}.json", one.content, images)
    with atomic_folder(folder) as temporary:
        for one in cleaned:
            write_json(temporary / f"{one.name}.json", one.content)
        if copy_images:
            _copy_images(cleaned, images, make_folder(temporary / "images"))
    return CleanedRecord(
        folder=str(folder),
        images=str(folder / "images" if copy_images else images),
        splits=tuple(
            CleanedSplit(
                name=one.name,
                path=str(folder / f"{one.name}.json"),
                images=len(one.content["images"]),
                objects=len(one.content["annotations"]),
                images_left_out=dict(sorted(one.images_left_out.items())),
                boxes_left_out=dict(sorted(one.boxes_left_out.items())),
                boxes_cut=one.boxes_cut,
            )
            for one in cleaned
        ),
    )


def require_free(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        OutputError: It does, or cannot be looked into.
    """
    try:
        held = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise OutputError(f"Cannot write {folder} ({error.strerror or error})", hint="Choose another place.") from error
    if held:
        raise OutputError(f"{folder} holds something", hint="Choose a folder for --fix that is absent or empty.")


def _common_folder(checked: Checked) -> Path:
    """Return the folder that holds the images of all files."""
    folders = [file.folder.resolve() for file in checked.files]
    return Path(os.path.commonpath(folders))


def _kept(checked: Checked) -> list[str | None]:
    """Return for each image the kind of finding for which it is left out, or None."""
    reasons = [_reason(image) for image in checked.images]
    for group in checked.copies:
        whole = [index for index in group if reasons[index] is None]
        if not whole:
            continue
        # The later split keeps the image: what is measured there must not be learned before.
        best = max(whole, key=lambda index: (rank(checked.images[index].split), _boxes(checked.images[index]), -index))
        for index in whole:
            if index != best:
                same = checked.images[index].split == checked.images[best].split
                reasons[index] = "images_repeated" if same else "images_shared"
    return reasons


def _reason(image: CheckedImage) -> str | None:
    if image.facts.problem is not None:
        return image.facts.problem
    differ = image.entry.size is not None and image.facts.size != image.entry.size
    out = any(verdict in {"boxes_outside", "boxes_reach_out"} for verdict in image.verdicts)
    return "sizes_differ" if differ and out else None


def _boxes(image: CheckedImage) -> int:
    return sum(verdict not in DROPS_BOX for verdict in image.verdicts)


def _categories(files: Sequence[AnnotationFile]) -> dict[str, int]:
    """Return one list for all files, name -> id: ids as the files have them as far as they are free."""
    found: dict[str, int] = {}
    homeless: list[str] = []
    for file in files:
        for identity, name in file.classes.items():
            if name in found or name in homeless:
                continue
            if isinstance(identity, int) and identity not in found.values():
                found[name] = identity
            else:
                homeless.append(name)
    for name in homeless:
        found[name] = max([0, *found.values()]) + 1
    return found


def _cleaned(
    name: str,
    index: int,
    checked: Checked,
    *,
    kept: Sequence[str | None],
    categories: dict[str, int],
    images: Path,
) -> _Cleaned:
    file = checked.files[index]
    mine = [(image, reason) for image, reason in zip(checked.images, kept, strict=True) if image.source == index]
    left_out = Counter(reason for _, reason in mine if reason is not None)
    whole = [image for image, reason in mine if reason is None]
    ids = _numbers([image.entry.id for image in whole])
    boxes_left_out: Counter[str] = Counter()
    annotations: list[dict[str, Any]] = []
    boxes_cut = 0
    for image, number in zip(whole, ids, strict=True):
        for box, verdict in zip(image.entry.boxes, image.verdicts, strict=True):
            if verdict is not None and verdict in DROPS_BOX:
                boxes_left_out[verdict] += 1
                continue
            size = image.facts.size if verdict in CUT else None
            boxes_cut += size is not None
            annotations.append(
                {**_annotation(box, size), "image_id": number, "category_id": categories[file.classes[box.category]]}
            )
    numbers = _numbers([annotation.get("id") for annotation in annotations])
    content = {
        **_plain({key: value for key, value in file.content.items() if key not in COCO_LISTS}),
        "info": _info(file, left_out, boxes_left_out, boxes_cut),
        "images": [_image(image, number, file, images) for image, number in zip(whole, ids, strict=True)],
        "annotations": [{**one, "id": number} for one, number in zip(annotations, numbers, strict=True)],
        "categories": _category_entries(file, categories),
    }
    return _Cleaned(name, content, left_out, boxes_left_out, boxes_cut)


def _numbers(ids: Sequence[Any]) -> list[int]:
    """Return the ids as they are when they are whole numbers, all different; else counted from 1."""
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    return list(ids) if whole and len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _image(image: CheckedImage, number: int, file: AnnotationFile, images: Path) -> dict[str, Any]:
    name = image.facts.renamed or image.entry.name
    assert image.facts.size is not None
    return {
        **_plain(image.entry.content),
        "id": number,
        "file_name": os.path.relpath(file.folder.resolve() / name, images) if file.folder.resolve() != images else name,
        "height": image.facts.size[0],
        "width": image.facts.size[1],
    }


def _annotation(box: BoxEntry, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return an annotation; given a (height, width), its box is cut to it."""
    left, top, width, height = box.bbox
    content = _plain(box.content)
    if size is not None:
        x1, y1, x2, y2 = cut(box.corners, size)
        left, top, width, height = x1, y1, x2 - x1, y2 - y1
    stated = content.get("area")
    known = size is None and isinstance(stated, int | float) and not isinstance(stated, bool)
    area = stated if known else width * height
    return {**content, "bbox": [left, top, width, height], "area": area, "iscrowd": int(box.ignore)}


def _category_entries(file: AnnotationFile, categories: dict[str, int]) -> list[dict[str, Any]]:
    """Return the categories, each with what else the file says of it."""
    more: dict[Identity, dict[str, Any]] = {}
    listed = file.content.get("categories")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            more.setdefault(entry["name"], _plain(entry))
    return [
        {**more.get(name, {}), "id": number, "name": name}
        for name, number in sorted(categories.items(), key=lambda item: item[1])
    ]


def _info(file: AnnotationFile, images: Counter[str], boxes: Counter[str], boxes_cut: int) -> dict[str, Any]:
    stated = file.content.get("info")
    return {
        **(_plain(stated) if isinstance(stated, dict) else {}),
        "cleaned_by": f"ifkd {__version__}",
        "cleaned_from": {"path": str(file.path), "sha256": file.sha256},
        "images_left_out": dict(sorted(images.items())),
        "boxes_left_out": dict(sorted(boxes.items())),
        "boxes_cut": boxes_cut,
    }


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return what of an object can be written as JSON again, without NaN, infinity and broken characters."""
    kept = {}
    for key, value in content.items():
        try:
            json.dumps([key, value], allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            continue
        kept[key] = value
    return kept


def _copy_images(cleaned: Sequence[_Cleaned], source: Path, target: Path) -> None:
    for one in cleaned:
        for image in one.content["images"]:
            name = image["file_name"]
            make_folder((target / name).parent)
            shutil.copyfile(source / name, target / name)
