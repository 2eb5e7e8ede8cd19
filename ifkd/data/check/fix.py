"""Write a fixed copy of a data set: files that the strict reader accepts, with a record of what was left out."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifkd import __version__
from ifkd.core.errors import OutputError
from ifkd.core.files import atomic_folder, make_folder, not_writable, write_json
from ifkd.data.check.box_checks import clip_box
from ifkd.data.check.check import CheckedDataset, split_rank
from ifkd.data.check.check_record import FixedCopy, FixedSplit
from ifkd.data.check.finding import DROPS_BOX
from ifkd.data.check.image_inspection import CheckedImage
from ifkd.data.check.lenient_coco import AnnotationFile, BoxEntry
from ifkd.data.coco import COCO_LISTS, parse_coco

CLIPS_BOX = frozenset({"boxes_cross_border", "boxes_cross_border_slightly"})
"""Kinds of findings for which a box is clipped to its image."""


def write_fixed(checked: CheckedDataset, folder: Path, *, copy_images: bool = False) -> FixedCopy:
    """Write a fixed copy of a data set into `folder`, completely or not at all, and return its record.

    Raises:
        OutputError: The folder has files, or is not writable.
    """
    require_empty(folder)
    images = Path(os.path.commonpath([file.folder.resolve() for file in checked.files]))
    reasons = _reasons(checked)
    category_ids = _category_ids(checked.files)
    splits: list[FixedSplit] = []
    contents: list[dict[str, Any]] = []
    for index, source in enumerate(checked.record.sources):
        path = folder / f"{source.split}.json"
        content = _fixed_content(index, checked, reasons, category_ids, images)
        parse_coco(path, content, images)  # training must be able to read what is written
        counts = {key: content["info"][key] for key in ("images_left_out", "boxes_left_out", "boxes_clipped")}
        images_and_objects = {"images": len(content["images"]), "objects": len(content["annotations"])}
        splits.append(FixedSplit(name=source.split, path=str(path), **images_and_objects, **counts))
        contents.append(content)
    with atomic_folder(folder) as temporary:
        for split, content in zip(splits, contents, strict=True):
            write_json(temporary / f"{split.name}.json", content)
        if copy_images:
            for image in (image for content in contents for image in content["images"]):
                target = temporary / "images" / image["file_name"]
                make_folder(target.parent)
                shutil.copyfile(images / image["file_name"], target)
    image_folder = folder / "images" if copy_images else images
    return FixedCopy(folder=str(folder), images=str(image_folder), splits=tuple(splits))


def require_empty(folder: Path) -> None:
    """Check that a folder is absent or empty.

    Raises:
        OutputError: The folder has files, or is not readable.
    """
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise not_writable(folder, error) from error
    if occupied:
        raise OutputError(f"{folder} is not empty", hint="Choose a folder for --fix that is absent or empty.")


def _reasons(checked: CheckedDataset) -> list[str | None]:
    """Return the kind of finding for which each image is left out, None for images that are kept."""
    reasons = [_reason(image) for image in checked.images]
    boxes = [sum(kind not in DROPS_BOX for kind in image.box_findings) for image in checked.images]
    for group in checked.exact_duplicates:
        usable = [index for index in group if reasons[index] is None]
        if not usable:
            continue
        # The later split keeps the image: training must not see what is evaluated there.
        best = max(usable, key=lambda one: (split_rank(checked.images[one].split), boxes[one], -one))
        for index in usable:
            if index != best:
                same_split = checked.images[index].split == checked.images[best].split
                reasons[index] = "images_duplicated" if same_split else "images_in_two_splits"
    return reasons


def _reason(image: CheckedImage) -> str | None:
    if image.file.problem is not None:
        return image.file.problem
    sizes_differ = image.entry.size is not None and image.file.size != image.entry.size
    outside = any(kind in {"boxes_outside_image", "boxes_cross_border"} for kind in image.box_findings)
    return "sizes_differ" if sizes_differ and outside else None


def _category_ids(files: Sequence[AnnotationFile]) -> dict[str, int]:
    """Return name -> id of the categories of all files; ids are kept where they are integers and not in use."""
    found: dict[str, int] = {}
    without_id: list[str] = []
    for file in files:
        for category_id, name in file.classes.items():
            if name in found or name in without_id:
                continue
            if isinstance(category_id, int) and category_id not in found.values():
                found[name] = category_id
            else:
                without_id.append(name)
    for name in without_id:
        found[name] = max([0, *found.values()]) + 1
    return found


def _fixed_content(
    index: int, checked: CheckedDataset, reasons: Sequence[str | None], category_ids: dict[str, int], images: Path
) -> dict[str, Any]:
    """Return the content of a file of the copy; its `info` has the counts of what was left out."""
    file = checked.files[index]
    own = [(image, reason) for image, reason in zip(checked.images, reasons, strict=True) if image.source == index]
    images_left_out = Counter(reason for _, reason in own if reason is not None)
    kept = [image for image, reason in own if reason is None]
    image_ids = _unique_ids([image.entry.id for image in kept])
    boxes_left_out: Counter[str] = Counter()
    annotations: list[dict[str, Any]] = []
    boxes_clipped = 0
    for image, image_id in zip(kept, image_ids, strict=True):
        for box, kind in zip(image.entry.boxes, image.box_findings, strict=True):
            if kind is not None and kind in DROPS_BOX:
                boxes_left_out[kind] += 1
                continue
            size = image.file.size if kind in CLIPS_BOX else None
            boxes_clipped += size is not None
            ids = {"image_id": image_id, "category_id": category_ids[file.classes[box.category]]}
            annotations.append({**_annotation(box, size), **ids})
    annotation_ids = _unique_ids([annotation.get("id") for annotation in annotations])
    info = file.content.get("info")
    return {
        **_writable({key: value for key, value in file.content.items() if key not in COCO_LISTS}),
        "info": {
            **(_writable(info) if isinstance(info, dict) else {}),
            "fixed_by": f"ifkd {__version__}",
            "fixed_from": {"path": str(file.path), "sha256": file.sha256},
            "images_left_out": dict(sorted(images_left_out.items())),
            "boxes_left_out": dict(sorted(boxes_left_out.items())),
            "boxes_clipped": boxes_clipped,
        },
        "images": [_image(image, image_id, file, images) for image, image_id in zip(kept, image_ids, strict=True)],
        "annotations": [{**one, "id": one_id} for one, one_id in zip(annotations, annotation_ids, strict=True)],
        "categories": _category_entries(file, category_ids),
    }


def _unique_ids(ids: Sequence[Any]) -> list[int]:
    """Return the ids as they are if they are distinct integers, else numbers from 1."""
    integers = all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    return list(ids) if integers and len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _image(image: CheckedImage, image_id: int, file: AnnotationFile, images: Path) -> dict[str, Any]:
    name = image.file.actual_name or image.entry.name
    folder = file.folder.resolve()
    assert image.file.size is not None
    return {
        **_writable(image.entry.content),
        "id": image_id,
        "file_name": os.path.relpath(folder / name, images) if folder != images else name,
        "height": image.file.size[0],
        "width": image.file.size[1],
    }


def _annotation(box: BoxEntry, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return an annotation; if a (height, width) is given, its box is clipped to it."""
    left, top, width, height = box.bbox
    content = _writable(box.content)
    if size is not None:
        x1, y1, x2, y2 = clip_box(box.corners, size)
        left, top, width, height = x1, y1, x2 - x1, y2 - y1
    stated = content.get("area")
    keep_area = size is None and isinstance(stated, int | float) and not isinstance(stated, bool)
    area = stated if keep_area else width * height
    return {**content, "bbox": [left, top, width, height], "area": area, "iscrowd": int(box.ignore)}


def _category_entries(file: AnnotationFile, category_ids: dict[str, int]) -> list[dict[str, Any]]:
    """Return the categories by id, each with the other keys of its entry."""
    entries: dict[str, dict[str, Any]] = {}
    listed = file.content.get("categories")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            entries.setdefault(entry["name"], _writable(entry))
    by_id = sorted(category_ids.items(), key=lambda item: item[1])
    return [{**entries.get(name, {}), "id": category_id, "name": name} for name, category_id in by_id]


def _writable(content: dict[str, Any]) -> dict[str, Any]:
    """Return the items of an object that can be written as JSON: no NaN, infinity or invalid characters."""
    kept = {}
    for key, value in content.items():
        try:
            json.dumps([key, value], allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            continue
        kept[key] = value
    return kept
