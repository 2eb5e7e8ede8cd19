"""COCO json files of detection data sets, read into values whose boxes hold and written back."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ifkd.core.detections import Array, Detections
from ifkd.core.errors import DataError
from ifkd.core.files import write_json

OVERSHOOT_PX = 2.0
"""How far a box may reach beyond its image, as label tools round; it is cut. Further out is a mistake."""

MISTAKES_SHOWN = 10
LISTS = ("images", "annotations", "categories")
"""What every COCO detection file holds."""
MOST_SIDE_PX = 2**24
"""The largest image, by its side: beyond, single precision no longer tells pixels apart."""
MOST_JSON_BYTES = 1_000_000_000
"""A larger file would not fit the memory of many machines once it is read: Python needs about ten times its size."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledImage:
    """One image of a data set and the objects in it."""

    id: int
    """The source's image id."""
    path: Path
    size: tuple[int, int]
    """(height, width), pixels."""
    boxes: Array
    """float32 [n, 4], x1 y1 x2 y2, pixels."""
    labels: Array
    """int64 [n], indices into the data set's classes."""
    place: str
    """What it shows: the file's `scene` of the image where it has one, else the file name."""
    ignore: Array
    """bool [n]: regions that count neither as object nor as background (COCO's iscrowd)."""


@dataclass(frozen=True, slots=True, eq=False)
class CocoDataset:
    """Images with boxes of named classes."""

    path: Path
    """The json file."""
    classes: tuple[str, ...]
    """Class names by label."""
    category_ids: tuple[int, ...]
    """The file's category id by label; results are written with it."""
    images: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def objects_per_class(self) -> dict[str, int]:
        """Return how many objects, ignored regions left out, each class has."""
        labels = [image.labels[~image.ignore] for image in self.images]
        counts = np.bincount(np.concatenate(labels) if labels else [], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))


def read_coco(path: Path, *, images: Path | None = None, merge_classes: Mapping[str, str] | None = None) -> CocoDataset:
    """Read a COCO detection json.

    Args:
        path: The json file.
        images: The folder of its images; by default `images` beside the file.
        merge_classes: Class name -> the class its objects are counted as; the first one disappears.

    Raises:
        DataError: The file is absent, is not COCO, or holds annotations that cannot be right; the first of
            them are listed.
    """
    folder = path.parent / "images" if images is None else images
    content = read_json(path)
    return _checked(path, content, folder, merge_classes or {})


def _checked(path: Path, content: dict[str, Any], folder: Path, merge_classes: Mapping[str, str]) -> CocoDataset:
    try:
        return _dataset(path, content, folder, merge_classes)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"an entry has no {error}" if isinstance(error, KeyError) else f"an entry is malformed ({error})"
        raise DataError(f"{path} is not a COCO detection file: {what}") from error


def _dataset(path: Path, content: dict[str, Any], folder: Path, merge_classes: Mapping[str, str]) -> CocoDataset:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of, classes, category_ids = _labels(path, categories, merge_classes)
    known = Counter(image["id"] for image in content["images"])
    mistakes = [f"{count} images have the id {identity!r}" for identity, count in known.items() if count > 1]
    by_image: dict[int, list[dict[str, Any]]] = {identity: [] for identity in known}
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id')}"
        if annotation.get("image_id") not in known:
            mistakes.append(f"{name} belongs to image {annotation.get('image_id')!r}, which the file does not list")
        elif annotation.get("category_id") not in label_of:
            mistakes.append(
                f"{name} has category_id {annotation.get('category_id')!r}; the file's are {sorted(label_of)}"
            )
        else:
            by_image[annotation["image_id"]].append(annotation)
    labeled = [_labeled_image(image, by_image[image["id"]], folder, label_of, mistakes) for image in content["images"]]
    if mistakes:
        shown = mistakes[:MISTAKES_SHOWN]
        more = f"\n  … and {len(mistakes) - len(shown)} more" if len(mistakes) > len(shown) else ""
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise DataError(f"{path} has {count}:\n  " + "\n  ".join(shown) + more)
    return CocoDataset(path, classes, category_ids, tuple(labeled))


def check_content(path: Path, content: dict[str, Any], images: Path) -> CocoDataset:
    """Return COCO content that is about to be written to `path` as a data set, so that what is written can be read.

    Raises:
        DataError: It holds annotations that cannot be right.
    """
    return _checked(path, content, images, {})


def inside(folder: Path, name: str) -> Path:
    """Return a file's path inside a folder.

    Raises:
        DataError: The name, or a link it goes through, leads out of the folder.
    """
    path = folder / name
    try:
        held = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name!r} is no file name ({error})") from error
    if not held or not name.strip() or "\0" in name:
        raise DataError(
            f"The image {name!r} does not lie in {folder}",
            hint="Name files inside the image folder, without links out of it.",
        )
    return path


def write_coco(path: Path, dataset: CocoDataset) -> None:
    """Write a data set as COCO json; file names are the images' names, which lie in `images` beside it."""
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        for box, label, ignore in zip(image.boxes, image.labels, image.ignore, strict=True):
            x1, y1, x2, y2 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": dataset.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    write_json(
        path,
        {
            "images": [
                {
                    "id": image.id,
                    "file_name": image.path.name,
                    "height": image.size[0],
                    "width": image.size[1],
                }
                for image in dataset.images
            ],
            "annotations": annotations,
            "categories": [
                {"id": identity, "name": name}
                for identity, name in zip(dataset.category_ids, dataset.classes, strict=True)
            ],
        },
    )


def coco_results(detections: Iterable[tuple[int, Detections]], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return detections of images, given with their ids, in COCO's results form."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label)],
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            "score": float(score),
        }
        for image_id, found in detections
        for (x1, y1, x2, y2), score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a COCO json, of which only the three lists are known to be there.

    Raises:
        DataError: The file is absent, too large, or not such a file.
    """
    content = parse_json(path)
    absent = [key for key in LISTS if not isinstance(content, dict) or key not in content]
    if absent:
        raise DataError(f"{path} is not a COCO detection file: it has no {', '.join(absent)}")
    return content


def parse_json(path: Path, *, encoding: str = "utf-8") -> Any:
    """Return what a JSON file of unknown origin holds.

    Raises:
        DataError: The file is absent, too large, or not JSON.
    """
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise DataError(
                f"{path} is larger than an annotation file may be",
                got=f"{path.stat().st_size} bytes",
                expected=f"at most {MOST_JSON_BYTES}",
                hint="Split it into several data sets.",
            )
        return json.loads(path.read_text(encoding=encoding))
    except FileNotFoundError as error:
        raise DataError(f"There is no annotation file {path}", hint="Check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON file ({error})") from error


def _labels(
    path: Path, categories: list[dict[str, Any]], merge: Mapping[str, str]
) -> tuple[dict[int, int], tuple[str, ...], tuple[int, ...]]:
    """Return category id -> label, and names and category ids by label."""
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names) or len({category["id"] for category in categories}) < len(names):
        raise DataError(f"{path} has two categories of one name or one id; its classes are {names}")
    unknown = sorted((set(merge) | set(merge.values())) - set(names))
    if unknown:
        raise DataError(f"merge_classes names {unknown}, which {path} does not have; its classes are {names}")
    twice = sorted(set(merge) & set(merge.values()))
    if twice:
        raise DataError(f"merge_classes counts objects as {twice}, which it also merges", hint="Name the last class.")
    kept = [category for category in categories if category["name"] not in merge]
    label_of_name = {category["name"]: label for label, category in enumerate(kept)}
    label_of = {category["id"]: label_of_name[merge.get(category["name"], category["name"])] for category in categories}
    return label_of, tuple(label_of_name), tuple(category["id"] for category in kept)


def _labeled_image(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    folder: Path,
    label_of: Mapping[int, int],
    mistakes: list[str],
) -> LabeledImage:
    size = (int(image["height"]), int(image["width"]))
    boxes = []
    if not all(0 < side <= MOST_SIDE_PX for side in size):
        stated = f"height {image['height']!r:.20} and width {image['width']!r:.20}"
        mistakes.append(f"{image['file_name']} has {stated}; they must lie between 1 and {MOST_SIDE_PX}")
        annotations = []  # of which nothing can be said
    for annotation in annotations:
        left, top, width, height = (float(value) for value in annotation["bbox"])
        box = np.array([left, top, left + width, top + height])
        cut = box.clip(0, [size[1], size[0], size[1], size[0]]).astype(np.float32)
        problem = _box_problem(box, cut, size)
        if problem:
            mistakes.append(f"annotation {annotation.get('id')} of {image['file_name']} {problem}")
        boxes.append(cut)
    return LabeledImage(
        id=image["id"],
        path=inside(folder, image["file_name"]),
        place=str(image.get("scene", image["file_name"])),
        size=size,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array([label_of[annotation["category_id"]] for annotation in annotations], np.int64),
        ignore=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], bool),
    )


def _box_problem(box: Array, cut: Array, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a box, given it as it is written and as it is cut to its image."""
    height, width = size
    shown = [round(float(value), 2) for value in box]
    if not np.isfinite(box).all():
        return f"has the box {shown}, which is not finite"
    if box[2] <= box[0] or box[3] <= box[1]:
        return f"has the box {shown}, which has no area"
    overshoot = max(-box[0], -box[1], box[2] - width, box[3] - height)
    if overshoot > OVERSHOOT_PX or (cut[2:] <= cut[:2]).any():
        return f"has the box {shown}, which lies outside its image of {width}x{height} (width x height)"
    return None
