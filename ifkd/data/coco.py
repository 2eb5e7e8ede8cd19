"""COCO detection files: read and validate them, build their content, match their classes by name."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.files import read_json, require_unicode
from ifkd.core.oriented_boxes import corners
from ifkd.data.label_values import flag, integer, label_id, text_or
from ifkd.data.oriented_labels import corner_polygon, cut_boxes, oriented_boxes, polygon_points

BORDER_TOLERANCE_PX = 2.0
"""Boxes that cross the image border by at most this, as label tools round, are clipped; others are a mistake."""
COCO_LISTS = ("images", "annotations", "categories")
"""Keys that every COCO detection file has."""
MISTAKES_SHOWN = 10
MISSING_SHOWN = 3
MAX_SIDE_PX = 2**24
"""Largest image height and width: float32 cannot represent all pixel positions beyond."""
MAX_JSON_BYTES = 1_000_000_000
"""Largest annotation file; Python needs about ten times its size in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImage:
    """One image of a data set and its objects."""

    id: int
    """Image id of the COCO file."""
    path: Path
    size: tuple[int, int]
    """(height, width), pixels."""
    boxes: Array
    """float32 [n, 4], x1 y1 x2 y2, pixels."""
    labels: Array
    """int64 [n], indices into the data set's classes."""
    scene: str
    """Key `scene` of the image's entry, by default the file name; all images of a scene belong to one split."""
    ignore: Array
    """bool [n], regions that count neither as object nor as background (COCO's iscrowd)."""
    oriented: Array | None = None
    """float32 [n, 5], as in `ifkd.core.oriented_boxes`; NaN for an object that has none, None if no object has one."""


@dataclass(frozen=True, slots=True, eq=False)
class CocoDataset:
    """Images with boxes of named classes."""

    path: Path
    classes: tuple[str, ...]
    """Class names by label."""
    category_ids: tuple[int, ...]
    """Category ids of the file by label."""
    images: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def require_images(self) -> None:
        """Refuse a data set without images, or with missing image files, before the first image is read.

        Raises:
            DataError: No image is listed, or image files are missing; the first are named.
        """
        if not self.images:
            raise DataError(f"{self.path} lists no image", hint="Name a data set with images.")
        missing = [image.path for image in self.images if not image.path.is_file()]
        if missing:
            problem = f"{len(missing)} of {len(self)} images of {self.path} are missing"
            hint = "Check the folder of the images: data.root and data.images of the recipe, or --images."
            raise DataError(problem, got=", ".join(map(str, missing[:MISSING_SHOWN])), hint=hint)

    def require_oriented(self) -> None:
        """Refuse a data set in which an object, not an ignored region, has no oriented box.

        Raises:
            DataError: There is one; the first are named.
        """
        if lacking := self.lacking_oriented():
            objects = sum(self.objects_per_class().values())
            names = ", ".join(list(dict.fromkeys(lacking))[:MISSING_SHOWN])
            raise DataError(
                f"{len(lacking)} of {objects} objects of {self.path} have no oriented box",
                got=f"no `segmentation`, or one without an area, in {names}",
                expected="`segmentation` of each with the four corners of its box: [[x1, y1, x2, y2, x3, y3, x4, y4]]",
                hint="Convert the data set from its source with `ifkd data convert`, which keeps polygons; or train an "
                "upright detector: detector.oriented=false.",
            )

    def lacking_oriented(self) -> list[str]:
        """Return the name of the image of each object, not an ignored region, that has no oriented box."""
        lacking: list[str] = []
        for image in self.images:
            known = np.zeros(len(image.boxes), bool) if image.oriented is None else np.isfinite(image.oriented[:, 0])
            lacking += [image.path.name] * int((~known & ~image.ignore).sum())
        return lacking

    def objects_per_class(self) -> dict[str, int]:
        """Return the number of objects of each class, without ignored regions."""
        labels = [image.labels[~image.ignore] for image in self.images]
        counts = np.bincount(np.concatenate(labels) if labels else [], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def to_coco(self) -> dict[str, Any]:
        """Return the data set as the content of a COCO file."""
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            oriented = [None] * len(image.boxes) if image.oriented is None else image.oriented
            objects = zip(image.boxes.tolist(), image.labels.tolist(), image.ignore.tolist(), oriented, strict=True)
            for box, label, ignore, shape in objects:
                ids = {"id": len(annotations) + 1, "image_id": image.id, "category_id": self.category_ids[label]}
                has_shape = shape is not None and np.isfinite(shape).all()
                polygon = {"segmentation": corner_polygon(shape)} if has_shape else {}
                annotations.append({**ids, **box_entry(box, ignore=ignore), **polygon})
        images = [
            {"id": image.id, "file_name": image.path.name, "height": image.size[0], "width": image.size[1]}
            for image in self.images
        ]
        categories = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def box_entry(box: Sequence[float], *, ignore: bool) -> dict[str, Any]:
    """Return `bbox`, `area` and `iscrowd` of a COCO annotation; `box` is x1 y1 x2 y2."""
    x1, y1, x2, y2 = box
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": int(ignore)}


def coco_results(detections: Iterable[tuple[int, Detections]], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return detections of images, given with their ids, in COCO's results format.

    Those with oriented boxes have a `segmentation` of four corners.
    """
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            **({} if shape is None else {"segmentation": [shape]}),
            "score": float(score),
        }
        for image_id, found in detections
        for (x1, y1, x2, y2), score, label, shape in zip(
            found.boxes,
            found.scores,
            found.labels,
            [None] * len(found) if found.oriented is None else corner_polygons(found.oriented),
            strict=True,
        )
    ]


def corner_polygons(oriented: Array) -> list[list[float]]:
    """Return the corners of oriented boxes [n, 5], x1 y1 … x4 y4 each, as in COCO's `segmentation`."""
    polygons: list[list[float]] = corners(oriented).reshape(-1, 8).astype(np.float64).round(3).tolist()
    return polygons


def align_classes(dataset: CocoDataset, classes: Sequence[str], *, hint: str = "") -> CocoDataset:
    """Return a data set whose labels are indices into a detector's `classes`, matched by name.

    Raises:
        DataError: The class names differ.
    """
    if set(dataset.classes) != set(classes):
        raise DataError(
            f"The classes of {dataset.path} are not the detector's",
            got=list(dataset.classes),
            expected=list(classes),
            hint=hint or "Use data with these classes, or merge classes in the recipe (data.merge_classes).",
        )
    label_of = np.array([classes.index(name) for name in dataset.classes], np.int64)
    ids = dict(zip(dataset.classes, dataset.category_ids, strict=True))
    images = tuple(replace(image, labels=label_of[image.labels]) for image in dataset.images)
    return replace(dataset, classes=tuple(classes), category_ids=tuple(ids[name] for name in classes), images=images)


def read_coco(path: Path, *, images: Path | None = None, merge_classes: Mapping[str, str] | None = None) -> CocoDataset:
    """Read a COCO detection file; its images are in the folder `images` beside it by default.

    `merge_classes` has the class that objects of a class are counted as, by name.

    Raises:
        DataError: The file is missing, is not a COCO file, or has invalid entries; the first of them are listed.
    """
    content = read_coco_json(path)
    return parse_coco(path, content, images or image_folder(path, content), merge_classes=merge_classes)


def parse_coco(
    path: Path, content: dict[str, Any], images: Path, *, merge_classes: Mapping[str, str] | None = None
) -> CocoDataset:
    """Return the content of a COCO file as a data set; writers use it to validate what they write to `path`.

    Raises:
        DataError: The content is not that of a COCO file, or has invalid entries.
    """
    try:
        return _dataset(path, content, images, merge_classes or {})
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        problem = f"an entry has no {error}" if isinstance(error, KeyError) else f"an entry is malformed ({error})"
        raise DataError(f"{path} is not a COCO detection file: {problem}") from error


def read_coco_json(path: Path) -> dict[str, Any]:
    """Return the content of a COCO file; only the presence of its lists is checked.

    Raises:
        DataError: The file is missing, too large, or has no such lists.
    """
    content = read_annotations(path)
    absent = [key for key in COCO_LISTS if not isinstance(content, dict) or key not in content]
    if absent:
        raise DataError(f"{path} is not a COCO detection file: it has no {', '.join(absent)}")
    return content


def read_annotations(path: Path) -> Any:
    """Return the value of an untrusted JSON file.

    Raises:
        DataError: The file is missing, too large, or not JSON.
    """
    if path.is_file() and (size := path.stat().st_size) > MAX_JSON_BYTES:
        problem, got, expected = f"{path} is too large for an annotation file", f"{size} bytes", "at most"
        hint = "Split it into several data sets."
        raise DataError(problem, got=got, expected=f"{expected} {MAX_JSON_BYTES}", hint=hint)
    return read_json(path, what="annotation file")


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file inside a folder.

    Raises:
        DataError: The name is not UTF-8; or it, or a symbolic link, leads out of the folder.
    """
    require_unicode(name)
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name!r} is not a file name ({error})") from error
    if not inside or not name.strip() or "\0" in name:
        hint = "Name files inside the image folder, without links out of it."
        raise DataError(f"The image {name!r} is not inside {folder}", hint=hint)
    return path


def image_folder(path: Path, content: dict[str, Any]) -> Path:
    """Return the image folder of a COCO file: `images` beside it, or its own where that has the first image found."""
    folders, listed = (path.parent / "images", path.parent), content.get("images")
    for entry in listed if isinstance(listed, list) else ():
        name = entry.get("file_name") if isinstance(entry, dict) else None
        found = [folder for folder in folders if isinstance(name, str) and os.path.isfile(folder / name)]  # noqa: PTH113
        if found:
            return found[0]
    return folders[0]


def _dataset(path: Path, content: dict[str, Any], folder: Path, merge_classes: Mapping[str, str]) -> CocoDataset:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of, classes, category_ids = _labels(path, categories, merge_classes)
    known = Counter(label_id(image["id"]) for image in content["images"])
    mistakes = [f"{count} images have the id {image_id!r}" for image_id, count in known.items() if count > 1]
    by_image: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in known}
    for annotation in content["annotations"]:
        name = annotation.get("id")
        image, category = label_id(annotation.get("image_id")), label_id(annotation.get("category_id"))
        if image not in known:
            mistakes.append(f"annotation {name} belongs to image {image!r}, which the file does not list")
        elif category not in label_of:
            mistakes.append(f"annotation {name} has category_id {category!r}; the file's are {sorted(label_of)}")
        else:
            by_image[image].append(annotation)
    labeled = [
        _labeled_image(image, by_image[label_id(image["id"])], folder, label_of, mistakes)
        for image in content["images"]
    ]
    if mistakes:
        shown = mistakes[:MISTAKES_SHOWN]
        more = f"\n  … and {len(mistakes) - len(shown)} more" if len(mistakes) > len(shown) else ""
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        hint = "`ifkd data check --fix DIR` writes a copy that can be read, and states what it changed or left out."
        raise DataError(f"{path} has {count}:\n  " + "\n  ".join(shown) + more, hint=hint)
    return CocoDataset(path, classes, category_ids, tuple(_with_oriented(labeled, by_image)))


def _with_oriented(images: list[LabeledImage], by_image: dict[Any, list[dict[str, Any]]]) -> list[LabeledImage]:
    """Return images with the oriented boxes of their annotations, cut at the border of the image."""
    oriented = oriented_boxes(
        [polygon_points(one.get("segmentation")) for image in images for one in by_image[image.id]]
    )
    stops = np.cumsum([0, *(len(image.boxes) for image in images)])
    parts = [oriented[start:stop] for start, stop in pairwise(stops.tolist())]
    return [
        image if np.isnan(part).all() else replace(image, oriented=cut_boxes(part, image.size).oriented)
        for image, part in zip(images, parts, strict=True)
    ]


def _labels(
    path: Path, categories: list[dict[str, Any]], merge: Mapping[str, str]
) -> tuple[dict[Any, int], tuple[str, ...], tuple[Any, ...]]:
    """Return category id -> label, and names and category ids by label."""
    names = [category["name"] for category in categories]
    ids = [label_id(category["id"]) for category in categories]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} has category names that are not text", got=names)
    if len(set(names)) < len(names) or len(set(ids)) < len(names):
        raise DataError(f"{path} has two categories of one name or one id; its classes are {names}")
    unknown = sorted((set(merge) | set(merge.values())) - set(names))
    if unknown:
        raise DataError(f"merge_classes names {unknown}, which {path} does not have; its classes are {names}")
    chained = sorted(set(merge) & set(merge.values()))
    if chained:
        raise DataError(f"merge_classes merges into {chained}, which it also merges", hint="Name the last class.")
    kept = [category for category in categories if category["name"] not in merge]
    label_of_name = {category["name"]: label for label, category in enumerate(kept)}
    label_of = {one: label_of_name[merge.get(name, name)] for one, name in zip(ids, names, strict=True)}
    return label_of, tuple(label_of_name), tuple(one for one, name in zip(ids, names, strict=True) if name not in merge)


def _labeled_image(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    folder: Path,
    label_of: dict[Any, int],
    mistakes: list[str],
) -> LabeledImage:
    image_id: Any = label_id(image["id"])
    size = (integer(image["height"]) or 0, integer(image["width"]) or 0)
    boxes = []
    if not all(0 < side <= MAX_SIDE_PX for side in size):
        stated = f"height {image['height']!r:.20} and width {image['width']!r:.20}"
        mistakes.append(f"{image['file_name']} has {stated}; both must be between 1 and {MAX_SIDE_PX}")
        annotations = []  # boxes cannot be checked without a size
    for annotation in annotations:
        left, top, width, height = (float(value) for value in annotation["bbox"])
        box = np.array([left, top, left + width, top + height])
        clipped = box.clip(0, [size[1], size[0], size[1], size[0]]).astype(np.float32)
        problem = _box_problem(box, clipped, size)
        if flag(annotation.get("iscrowd")) is None:
            problem = f"has the iscrowd {annotation['iscrowd']!r:.20}; it must be 0 or 1"
        if problem:
            mistakes.append(f"annotation {annotation.get('id')} of {image['file_name']} {problem}")
        boxes.append(clipped)
    return LabeledImage(
        id=image_id,
        path=path_inside(folder, image["file_name"]),
        scene=text_or(image.get("scene"), image["file_name"]),
        size=size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([label_of[label_id(annotation["category_id"])] for annotation in annotations], np.int64),
        ignore=np.array([bool(flag(annotation.get("iscrowd"))) for annotation in annotations], bool),
    )


def _box_problem(box: Array, clipped: Array, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a box, given as it is stated and as it is clipped to its image."""
    height, width = size
    shown = [round(float(value), 2) for value in box]
    if not np.isfinite(box).all():
        return f"has the box {shown}, which is not finite"
    if box[2] <= box[0] or box[3] <= box[1]:
        return f"has the box {shown}, which has no area"
    overshoot = max(-box[0], -box[1], box[2] - width, box[3] - height)
    if overshoot > BORDER_TOLERANCE_PX or (clipped[2:] <= clipped[:2]).any():
        return f"has the box {shown}, which is outside its image of {width}x{height} (width x height)"
    return None
