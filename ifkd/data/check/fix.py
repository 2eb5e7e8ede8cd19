"""Write a fixed copy of a data set: files that the strict reader accepts, with a record of what was left out."""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifkd import __version__
from ifkd.core.errors import DataError, OutputError
from ifkd.core.files import atomic_folder, json_items, make_folder, not_writable, write_json
from ifkd.data.account import Account
from ifkd.data.check.box_checks import box_problem, clip_box, polygon_problems
from ifkd.data.check.box_form import in_pixel_widths
from ifkd.data.check.check import CheckedDataset, split_rank
from ifkd.data.check.check_record import FixedCopy, FixedSplit
from ifkd.data.check.finding import DROPS_BOX, DROPS_POLYGON
from ifkd.data.check.image_inspection import CheckedImage
from ifkd.data.check.lenient_coco import AnnotationFile, BoxEntry
from ifkd.data.coco import BORDER_TOLERANCE_PX, COCO_LISTS, parse_coco
from ifkd.data.label_values import flag
from ifkd.data.oriented_labels import polygon_points
from ifkd.imagery.exif import UPRIGHT, stored_corners
from ifkd.imagery.image_files import companions

CLIPS_BOX = frozenset({"boxes_cross_border", "boxes_cross_border_slightly"})
"""Kinds of findings for which a box is clipped to its image."""
OUTSIDE = frozenset({"boxes_outside_image", "boxes_cross_border"})
"""Kinds of findings of a box that does not fit into its image."""


@dataclass(frozen=True, slots=True)
class FixedFile:
    """A file of the copy."""

    content: dict[str, Any]
    account: Account


def write_fixed(checked: CheckedDataset, folder: Path, *, copy_images: bool = False) -> FixedCopy:
    """Write a fixed copy of a data set into `folder`, completely or not at all, and return its record.

    Raises:
        DataError: The boxes of a file have an unclear form, not COCO's; or no image file is found.
        OutputError: The folder has files, or is not writable.
    """
    require_empty(folder)
    images = Path(os.path.commonpath([file.folder.resolve() for file in checked.files]))
    reasons = _reasons(checked)
    category_ids = category_ids_of(checked.files)
    files = []
    for index, source_file in enumerate(checked.files):
        own = [pair for pair in zip(checked.images, reasons, strict=True) if pair[0].source == index]
        files.append(fixed_file(source_file, own, category_ids, images))
    if checked.images and all(reason == "files_missing" for reason in reasons):
        got = ", ".join(sorted({str(file.folder) for file in checked.files}))
        raise DataError("No image file is found, so there is no fixed copy", got=got, hint="Name the folder: --images.")
    paths = [folder / f"{source.split}.json" for source in checked.record.sources]
    for path, file in zip(paths, files, strict=True):
        parse_coco(path, file.content, images)  # training must be able to read what is written
    with atomic_folder(folder) as temporary:
        for path, file in zip(paths, files, strict=True):
            write_json(temporary / path.name, file.content)
        if copy_images:
            for image in (image for file in files for image in file.content["images"]):
                source, target = images / image["file_name"], temporary / "images" / image["file_name"]
                make_folder(target.parent)
                for one in (source, *companions(source)):
                    shutil.copyfile(one, target.with_name(one.name))
    image_folder = folder / "images" if copy_images else images
    splits = tuple(
        FixedSplit(name=source.split, path=str(path), account=file.account)
        for source, path, file in zip(checked.record.sources, paths, files, strict=True)
    )
    return FixedCopy(folder=str(folder), images=str(image_folder), splits=splits)


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
    reasons = [reason_of(image) for image in checked.images]
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


def reason_of(image: CheckedImage) -> str | None:
    """Return the kind of finding for which an image is left out, None for a usable one."""
    if image.file.problem is not None:
        return image.file.problem
    stated, size = image.entry.size, image.file.size
    if stated is None or size is None or stated == size or not image.entry.boxes:
        return None
    if max(abs(stated[0] - size[0]), abs(stated[1] - size[1])) <= BORDER_TOLERANCE_PX:
        return None
    # Labels of another image, for example of its original before it was resized, may fit into the file by chance. Only
    # boxes that do not fit into the stated size show that they belong to the file.
    fit = [[box_problem(box.corners, one) not in OUTSIDE for box in image.entry.boxes] for one in (size, stated)]
    return None if all(fit[0]) and not all(fit[1]) else "sizes_differ"


def category_ids_of(files: Sequence[AnnotationFile]) -> dict[str, int]:
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


def fixed_file(
    file: AnnotationFile,
    checked: Sequence[tuple[CheckedImage, str | None]],
    category_ids: Mapping[str, int],
    folder: Path,
) -> FixedFile:
    """Return a file of the copy, with its account in `info`; images have the reason why they are left out, or None.

    Raises:
        DataError: The boxes have another form than COCO's, and it is unclear which.
    """
    if malformed := [key for key in COCO_LISTS if not isinstance(file.content.get(key, []), list)]:
        raise DataError(f"{file.path} has no list of {', '.join(malformed)}, and no copy is written", expected="lists")
    form, images = in_pixel_widths([image for image, _ in checked])
    image_outcomes, object_outcomes = copy.deepcopy((file.image_outcomes, file.object_outcomes))
    kept: list[CheckedImage] = []
    for image, (_, reason) in zip(images, checked, strict=True):
        if reason is None:
            kept.append(image)
        else:
            image_outcomes.drop(reason, image.entry.name)
            object_outcomes.drop(reason, count=len(image.entry.boxes))
    image_ids = _unique_ids([image.entry.id for image in kept])
    annotations: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for image, image_id in zip(kept, image_ids, strict=True):
        entry = _image(image, image_id, file, folder)
        entries.append(entry)
        changes = _image_changes(image)
        if changes:
            image_outcomes.change(", ".join(changes), image.entry.name)
        polygons = polygon_problems(image.entry.boxes, image.size)
        for box, kind, polygon in zip(image.entry.boxes, image.box_findings, polygons, strict=True):
            if kind is not None and kind in DROPS_BOX:
                object_outcomes.drop(kind)
                continue
            changes = _box_changes(box, kind, image, form)
            without_polygon = [polygon] if polygon in DROPS_POLYGON else []
            if changes or without_polygon:
                object_outcomes.change(", ".join([*changes, *without_polygon]))
            ids = {"image_id": image_id, "category_id": category_ids[file.classes[box.category]]}
            annotation = _annotation(box, image, changed=bool(changes))
            if without_polygon:
                annotation.pop("segmentation", None)
            annotations.append({**annotation, **ids})
    annotation_ids = _unique_ids([annotation.get("id") for annotation in annotations])
    account = Account(
        images=image_outcomes.tally(received=file.count("images"), written=len(entries)),
        objects=object_outcomes.tally(received=file.count("annotations"), written=len(annotations)),
    )
    info = file.content.get("info")
    content = {
        **json_items({key: value for key, value in file.content.items() if key not in COCO_LISTS}),
        "info": {
            **(json_items(info) if isinstance(info, dict) else {}),
            "fixed_by": f"ifkd {__version__}",
            "fixed_from": {"path": str(file.path), "sha256": file.sha256},
            "images_left_out": account.images.dropped,
            "boxes_left_out": account.objects.dropped,
            "account": account.model_dump(mode="json"),
        },
        "images": entries,
        "annotations": [{**one, "id": one_id} for one, one_id in zip(annotations, annotation_ids, strict=True)],
        "categories": _category_entries(file, category_ids),
    }
    return FixedFile(content, account)


def _image_changes(image: CheckedImage) -> list[str]:
    """Return the kinds of findings for which an image's entry is changed."""
    stated, file = image.entry.size, image.file
    changes = {
        "sizes_malformed": stated is None,
        "sizes_differ": stated is not None and stated != file.size,
        "orientation_displayed": file.orientation != UPRIGHT,
        "file_names_differ": file.actual_name is not None,
    }
    return [kind for kind, is_changed in changes.items() if is_changed]


def _box_changes(box: BoxEntry, kind: str | None, image: CheckedImage, form: str | None) -> list[str]:
    """Return the kinds of findings, or the form, for which an annotation is changed."""
    changes = {
        f"boxes_as_{form}": form is not None,
        str(kind): kind in CLIPS_BOX,
        "orientation_displayed": image.file.orientation != UPRIGHT,
        "numbers_as_text": any(isinstance(value, str) for value in box.content["bbox"]),
        "flags_unclear": flag(box.content.get("iscrowd")) is None,
    }
    return [reason for reason, is_changed in changes.items() if is_changed]


def _unique_ids(ids: Sequence[Any]) -> list[int]:
    """Return the ids as they are if they are distinct integers, else numbers from 1."""
    integers = all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    return list(ids) if integers and len(set(ids)) == len(ids) else list(range(1, len(ids) + 1))


def _image(image: CheckedImage, image_id: int, file: AnnotationFile, images: Path) -> dict[str, Any]:
    name = image.file.actual_name or image.entry.name
    folder = file.folder.resolve()
    assert image.file.size is not None
    height, width = image.file.size if image.file.orientation == UPRIGHT else image.file.size[::-1]
    return {
        **json_items(image.entry.content),
        "id": image_id,
        "file_name": os.path.relpath(folder / name, images) if folder != images else name,
        "height": height,
        "width": width,
    }


def _annotation(box: BoxEntry, image: CheckedImage, *, changed: bool) -> dict[str, Any]:
    """Return an annotation; a `changed` box is clipped to its image, as stored."""
    content = json_items(box.content)
    left, top, width, height = box.bbox
    if changed:
        assert image.size is not None
        corners = clip_box(box.corners, image.size)
        if image.file.orientation != UPRIGHT:
            corners = stored_corners(corners, image.file.orientation, image.size[::-1])
            content |= _stored_polygons(content.pop("segmentation", None), image.file.orientation, image.size[::-1])
        left, top, width, height = corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]
    stated = content.get("area")
    keep_area = not changed and isinstance(stated, int | float) and not isinstance(stated, bool)
    area = stated if keep_area else width * height
    return {**content, "bbox": [left, top, width, height], "area": area, "iscrowd": int(box.ignore)}


def _stored_polygons(segmentation: Any, orientation: int, stored: tuple[int, int]) -> dict[str, Any]:
    """Return polygons of the displayed image as `segmentation` of the stored one; empty for what is none."""
    if polygon_points(segmentation) is None:
        return {}
    rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points = [np.array(ring, np.float64).reshape(-1, 2).tolist() for ring in rings]
    turned = [[stored_corners((x, y, x, y), orientation, stored)[:2] for x, y in ring] for ring in points]
    return {"segmentation": [[value for point in ring for value in point] for ring in turned]}


def _category_entries(file: AnnotationFile, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the categories by id, each with the other keys of its entry."""
    entries: dict[str, dict[str, Any]] = {}
    listed = file.content.get("categories")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            entries.setdefault(entry["name"], json_items(entry))
    by_id = sorted(category_ids.items(), key=lambda item: item[1])
    return [{**entries.get(name, {}), "id": category_id, "name": name} for name, category_id in by_id]
