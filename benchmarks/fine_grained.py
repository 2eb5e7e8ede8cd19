"""Difficulty of fine-grained classes: the confusion of a nearest-centroid classifier on each data set.

    python benchmarks/fine_grained.py NAME=FOLDER [NAME=FOLDER ...] [--json FILE]

A FOLDER is the output of `ifkd data synth`. The centroid of a class is the mean of its training objects; a test object
gets the class of the nearest centroid by Euclidean distance. Objects have three descriptors:

- size: the sides of its box, the longer one first, divided by their standard deviation over the training objects
- box: the pixels of its box, resized to 32x32, minus their mean, divided by their norm
- rotated: a window around the object with its heading up, of one size for all objects, otherwise like `box`

The result is the mean recall over classes; chance is 1 / classes. Objects at a tile's border and ignored objects are
left out.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifkd.core.detections import Array
from ifkd.core.files import write_json
from ifkd.imagery.image_files import read_image

SIDE = 32


@dataclass(frozen=True, slots=True, eq=False)
class Descriptors:
    """Descriptors of the objects of a split."""

    labels: Array
    """int64 [n]."""
    features: dict[str, Array]
    """Descriptor -> float64 [n, features]."""


def read_descriptors(
    folder: Path, split: str, window_px: float | None = None
) -> tuple[Descriptors, tuple[str, ...], float]:
    """Return a split's descriptors, its class names, and the side of the window of `rotated`, pixels.

    Args:
        folder: The data set.
        split: Name of its JSON file.
        window_px: Side of the window; by default the smallest that contains each object.
    """
    content = json.loads((folder / f"{split}.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    names = tuple(category["name"] for category in content["categories"])
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    objects = [one for one in content["annotations"] if not one["iscrowd"] and _is_inside(one, images[one["image_id"]])]
    side = window_px or float(max(np.hypot(*one["bbox"][2:]) for one in objects))
    gray: dict[int, Image.Image] = {}
    sizes, boxes, rotated = [], [], []
    for one in objects:
        image = images[one["image_id"]]
        if image["id"] not in gray:
            pixels = read_image(folder / "images" / image["file_name"]).mean(2).astype(np.uint8)
            gray[image["id"]] = Image.fromarray(pixels)
        picture = gray[image["id"]]
        x, y, width, height = one["bbox"]
        sizes.append(sorted((width, height), reverse=True))
        box = (x, y, x + width, y + height)
        boxes.append(_normalize(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)))
        rotated.append(_normalize(_rotate(picture, (x + width / 2, y + height / 2), one["heading_deg"], side)))
    features = {"size": np.array(sizes), "box": np.array(boxes), "rotated": np.array(rotated)}
    return Descriptors(np.array([labels[one["category_id"]] for one in objects]), features), names, side


def _is_inside(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    x, y, width, height = annotation["bbox"]
    return min(x, y) > 0.5 and x + width < image["width"] - 0.5 and y + height < image["height"] - 0.5


def _rotate(picture: Image.Image, center: tuple[float, float], heading_deg: float, side: float) -> Image.Image:
    """Return a window of `side` pixels around a center, resized and rotated so that the heading points up."""
    angle, scale = np.radians(heading_deg), side / SIDE
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    start_x = center[0] - (cosine - sine) * SIDE / 2
    start_y = center[1] - (sine + cosine) * SIDE / 2
    affine = (cosine, -sine, start_x, sine, cosine, start_y)
    return picture.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def _normalize(picture: Image.Image) -> Array:
    values = np.asarray(picture, np.float64).ravel()
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-9))


def confusion_matrix(train: Descriptors, test: Descriptors, descriptor: str, classes: int) -> Array:
    """Return the number of test objects by class (row) and predicted class (column), int64 [classes, classes]."""
    scale = train.features[descriptor].std(axis=0).clip(1e-9) if descriptor == "size" else 1.0
    known, queries = train.features[descriptor] / scale, test.features[descriptor] / scale
    centroids = np.stack([known[train.labels == label].mean(axis=0) for label in range(classes)])
    nearest = ((queries[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (test.labels, nearest), 1)
    return counts


def mean_recall(counts: Array) -> float:
    """Return the mean recall over the classes in the test split."""
    totals = counts.sum(axis=1)
    return float((np.diag(counts)[totals > 0] / totals[totals > 0]).mean())


def main() -> int:
    """Measure each folder, and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for argument in arguments.folders:
        name, _, folder = argument.partition("=")
        train, classes, side = read_descriptors(Path(folder), "train")
        test, _, _ = read_descriptors(Path(folder), "test", side)
        matrices = {one: confusion_matrix(train, test, one, len(classes)) for one in train.features}
        sizes = f"{len(train.labels)} training, {len(test.labels)} test objects"
        print(f"{name}: {len(classes)} classes, chance {1 / len(classes):.3f}; {sizes}")
        for descriptor, counts in matrices.items():
            print(f"  {descriptor:>7}: mean recall {mean_recall(counts):.3f}")
        best = max(matrices, key=lambda descriptor: mean_recall(matrices[descriptor]))
        print(f"  {best}, rows are the ground truth: " + ", ".join(classes))
        for label, row in zip(classes, matrices[best], strict=True):
            print(f"  {label:>18} " + " ".join(f"{count:4d}" for count in row))
        results[name] = {
            "classes": classes, "train": len(train.labels), "test": len(test.labels),
            "recall": {descriptor: mean_recall(counts) for descriptor, counts in matrices.items()},
            "confusion": {descriptor: counts.tolist() for descriptor, counts in matrices.items()},
        }  # fmt: skip
    if arguments.json is not None:
        write_json(arguments.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
