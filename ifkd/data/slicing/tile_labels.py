"""Labels of an image as its tiles see them, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window

LEAST_SIDE_PX = 0.01
"""A piece of a box that is narrower shows nothing, and is left out."""
CHANGED = ("id", "image_id", "bbox", "area", "iscrowd", "segmentation")
"""Keys of an annotation that a tile has otherwise, or not at all; all others are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBoxes:
    """The boxes of one source image."""

    annotations: tuple[dict[str, Any], ...]
    """As the source file has them."""
    numbers: tuple[int | str, ...]
    """What each is called in the map back."""
    boxes: Array
    """float64 [n, 4], x1 y1 x2 y2, pixels of the source, inside it."""
    ignore: Array
    """bool [n]: neither object nor background."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a tile shows of a box."""

    index: int
    """Which of the source image's boxes."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, pixels of the tile."""
    share: float
    """Of the box's area, how much the tile shows."""
    ignore: bool


def source_boxes(
    annotations: Sequence[dict[str, Any]], numbers: Sequence[int | str], size: tuple[int, int]
) -> SourceBoxes:
    """Return the boxes of an image of `size` (height, width), cut to it, from checked COCO annotations."""
    given = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    corners = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)
    height, width = size
    return SourceBoxes(
        annotations=tuple(annotations),
        numbers=tuple(numbers),
        boxes=corners.clip(0.0, [width, height, width, height]),
        ignore=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], bool),
    )


def pieces_in(
    source: SourceBoxes, window: Window, *, keep_share: float, rest: Literal["ignore", "drop"]
) -> list[Piece]:
    """Return what a window shows of an image's boxes.

    Args:
        source: The boxes.
        window: Inside the image.
        keep_share: A piece with at least this share of its box's area is an object.
        rest: What becomes of smaller pieces: a region to ignore, or nothing.
    """
    origin = np.array([window.left, window.top] * 2, np.float64)
    cut = (source.boxes - origin).clip(0.0, [window.width, window.height] * 2)
    sides = cut[:, 2:] - cut[:, :2]
    seen = np.flatnonzero((sides >= LEAST_SIDE_PX).all(axis=1))
    whole = source.boxes[seen, 2:] - source.boxes[seen, :2]
    shares = (sides[seen] / whole).prod(axis=1)
    pieces = []
    for index, share in zip(seen.tolist(), shares.tolist(), strict=True):
        crowd = bool(source.ignore[index])
        small = share < keep_share
        if small and not crowd and rest == "drop":
            continue
        x1, y1, x2, y2 = cut[index].tolist()
        pieces.append(Piece(index, (x1, y1, x2, y2), share, crowd or small))
    return pieces


def tile_annotation(piece: Piece, source: SourceBoxes) -> dict[str, Any]:
    """Return a piece as a COCO annotation, still without its ids, that names the annotation it is a piece of."""
    x1, y1, x2, y2 = piece.box
    annotation = source.annotations[piece.index]
    return {
        **{key: value for key, value in annotation.items() if key not in CHANGED},
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(piece.ignore),
        "source_annotation": source.numbers[piece.index],
        "visible_share": round(piece.share, 4),
    }


def put_together(content: Mapping[str, Any]) -> dict[int | str, Array]:
    """Return the boxes of the sources that a tiles' COCO file knows of, by the source's annotation.

    Each is the hull of its pieces, float64 [4], x1 y1 x2 y2 in the source's pixels.
    """
    origins = {image["id"]: (image["source"]["left"], image["source"]["top"]) for image in content["images"]}
    hulls: dict[int | str, Array] = {}
    for annotation in content["annotations"]:
        left, top = origins[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        box = np.array([left + x, top + y, left + x + width, top + y + height])
        hull = hulls.setdefault(annotation["source_annotation"], box)
        np.minimum(hull[:2], box[:2], out=hull[:2])
        np.maximum(hull[2:], box[2:], out=hull[2:])
    return hulls
