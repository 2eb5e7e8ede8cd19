"""How hard classes are to tell apart: the confusion of a nearest-centroid classifier, one figure for each data set.

    python benchmarks/fine_grained.py NAME=FOLDER [NAME=FOLDER ...] [--json FILE]

A FOLDER is one that `ifkd data synth` made. Every class is the mean of its training objects; a test object gets the
class whose mean is nearest (Euclid). Three descriptions of an object:

- size: the sides of its box, the longer one first, in units of their deviation over the training objects
- box: the pixels of its box, drawn to 32x32, less their mean, divided by their norm
- turned: a window around it, turned so that bow or nose point up, of one scale for all, 32x32, treated likewise

The figure is the mean recall over classes, so that frequent classes weigh no more; chance is 1 / classes. Objects that
the tile cuts, or that are to be ignored, are left out.
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
class Objects:
    """The objects of a split."""

    labels: Array
    """int64 [n]."""
    described: dict[str, Array]
    """By description: float64 [n, features]."""


def objects_of(folder: Path, split: str, window_px: float | None) -> tuple[Objects, tuple[str, ...], float]:
    """Return a split's objects, the classes, and the side of the window that holds any of its objects."""
    content = json.loads((folder / f"{split}.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    names = tuple(category["name"] for category in content["categories"])
    place = {category["id"]: number for number, category in enumerate(content["categories"])}
    whole = [one for one in content["annotations"] if not one["iscrowd"] and _is_whole(one, images[one["image_id"]])]
    side = window_px or float(max(np.hypot(*one["bbox"][2:]) for one in whole))
    pictures: dict[int, Image.Image] = {}
    sizes, boxes, turned = [], [], []
    for one in whole:
        image = images[one["image_id"]]
        if image["id"] not in pictures:
            pictures[image["id"]] = Image.fromarray(
                read_image(folder / "images" / image["file_name"]).mean(2).astype(np.uint8)
            )
        picture = pictures[image["id"]]
        x, y, width, height = one["bbox"]
        sizes.append(sorted((width, height), reverse=True))
        boxes.append(
            _normal(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height)))
        )
        turned.append(_normal(_turned(picture, (x + width / 2, y + height / 2), one["heading_deg"], side)))
    labels = np.array([place[one["category_id"]] for one in whole])
    return Objects(labels, {"size": np.array(sizes), "box": np.array(boxes), "turned": np.array(turned)}), names, side


def _is_whole(annotation: dict[str, Any], image: dict[str, Any]) -> bool:
    x, y, width, height = annotation["bbox"]
    return min(x, y) > 0.5 and x + width < image["width"] - 0.5 and y + height < image["height"] - 0.5


def _turned(picture: Image.Image, center: tuple[float, float], heading_deg: float, side: float) -> Image.Image:
    """Return a window of `side` pixels around a center, in which the heading points up."""
    angle, scale = np.radians(heading_deg), side / SIDE
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    start_x = center[0] - (cosine - sine) * SIDE / 2
    start_y = center[1] - (sine + cosine) * SIDE / 2
    move = (cosine, -sine, start_x, sine, cosine, start_y)
    return picture.transform((SIDE, SIDE), Image.Transform.AFFINE, move, Image.Resampling.BILINEAR)


def _normal(picture: Image.Image) -> Array:
    values = np.asarray(picture, np.float64).ravel()
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-9))


def confusion(train: Objects, test: Objects, description: str, classes: int) -> Array:
    """Return how often each class (row) is taken for each (column), int64 [classes, classes]."""
    spread = train.described[description].std(axis=0).clip(1e-9) if description == "size" else 1.0
    known, asked = train.described[description] / spread, test.described[description] / spread
    centroids = np.stack([known[train.labels == label].mean(axis=0) for label in range(classes)])
    nearest = ((asked[:, None] - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (test.labels, nearest), 1)
    return counts


def recall(counts: Array) -> float:
    """Return the mean recall over the classes that occur."""
    totals = counts.sum(axis=1)
    return float((np.diag(counts)[totals > 0] / totals[totals > 0]).mean())


def main() -> int:
    """Measure every folder and print its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    record: dict[str, Any] = {}
    for word in options.folders:
        name, _, folder = word.partition("=")
        train, names, side = objects_of(Path(folder), "train", None)
        test, _, _ = objects_of(Path(folder), "test", side)
        found = {kind: confusion(train, test, kind, len(names)) for kind in train.described}
        counts_said = f"{len(train.labels)} training, {len(test.labels)} test objects"
        print(f"{name}: {len(names)} classes, chance {1 / len(names):.3f}; {counts_said}")
        for kind, counts in found.items():
            print(f"  {kind:>7}: mean recall {recall(counts):.3f}")
        best = max(found, key=lambda kind: recall(found[kind]))
        print(f"  {best}, rows are the truth: " + ", ".join(names))
        for label, row in zip(names, found[best], strict=True):
            print(f"  {label:>18} " + " ".join(f"{count:4d}" for count in row))
        record[name] = {
            "classes": names, "train": len(train.labels), "test": len(test.labels),
            "recall": {kind: recall(counts) for kind, counts in found.items()},
            "confusion": {kind: counts.tolist() for kind, counts in found.items()},
        }  # fmt: skip
    if options.json is not None:
        write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
