"""Labels of tiles: cut the boxes of an image at tile borders, and restore them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ifkd.core.detections import Array
from ifkd.core.tiling import Window
from ifkd.data.coco import box_entry

MIN_SIDE_PX = 0.01
"""Narrower parts of a box are left out."""
REPLACED_KEYS = ("id", "image_id", "bbox", "area", "iscrowd", "segmentation")
"""Keys of a source's annotation that a tile's does not copy."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceBoxes:
    """Boxes of one source image."""

    annotations: tuple[dict[str, Any], ...]
    """Entries of the source file."""
    boxes: Array
    """float64 [n, 4], x1 y1 x2 y2, source pixels, clipped to the image."""
    ignore: Array
    """bool [n], regions that count neither as object nor as background."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a box that is inside a tile."""

    index: int
    """Index of the box in its source image."""
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, tile pixels."""
    visibility: float
    """Fraction of the box's area inside the tile."""
    ignore: bool


def source_boxes(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> SourceBoxes:
    """Return the boxes of validated COCO annotations, clipped to an image of `size` (height, width)."""
    bbox = np.array([annotation["bbox"] for annotation in annotations], np.float64).reshape(-1, 4)
    corners = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
    height, width = size
    return SourceBoxes(
        annotations=tuple(annotations),
        boxes=corners.clip(0.0, [width, height, width, height]),
        ignore=np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], bool),
    )


def pieces_in(
    source: SourceBoxes, window: Window, *, min_visibility: float, cut_objects: Literal["ignore", "drop"]
) -> list[Piece]:
    """Return the parts of an image's boxes inside a window.

    Args:
        source: The boxes.
        window: A window inside the image.
        min_visibility: Least visible fraction of a box's area for an object.
        cut_objects: Whether less visible boxes become ignored regions, or are dropped.
    """
    origin = np.array([window.left, window.top] * 2, np.float64)
    cut = (source.boxes - origin).clip(0.0, [window.width, window.height] * 2)
    sides = cut[:, 2:] - cut[:, :2]
    visible = np.flatnonzero((sides >= MIN_SIDE_PX).all(axis=1))
    full_sides = source.boxes[visible, 2:] - source.boxes[visible, :2]
    visibilities = (sides[visible] / full_sides).prod(axis=1)
    pieces = []
    for index, visibility in zip(visible.tolist(), visibilities.tolist(), strict=True):
        crowd = bool(source.ignore[index])
        small = visibility < min_visibility
        if small and not crowd and cut_objects == "drop":
            continue
        x1, y1, x2, y2 = cut[index].tolist()
        pieces.append(Piece(index, (x1, y1, x2, y2), visibility, crowd or small))
    return pieces


def tile_annotation(piece: Piece, source: SourceBoxes) -> dict[str, Any]:
    """Return a piece as a COCO annotation without ids; `source_annotation` is the id of its box in the source."""
    annotation = source.annotations[piece.index]
    return {
        **{key: value for key, value in annotation.items() if key not in REPLACED_KEYS},
        **box_entry(piece.box, ignore=piece.ignore),
        "source_annotation": annotation["id"],
        "visibility": round(piece.visibility, 4),
    }


def restore_boxes(content: Mapping[str, Any]) -> dict[int | str, Array]:
    """Return the source boxes of a tiled COCO file by source annotation id.

    Each is the bounding box of its pieces, float64 [4], x1 y1 x2 y2, source pixels.
    """
    origins = {image["id"]: (image["source"]["left"], image["source"]["top"]) for image in content["images"]}
    restored: dict[int | str, Array] = {}
    for annotation in content["annotations"]:
        left, top = origins[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        piece = np.array([left + x, top + y, left + x + width, top + y + height])
        box = restored.setdefault(annotation["source_annotation"], piece)
        np.minimum(box[:2], piece[:2], out=box[:2])
        np.maximum(box[2:], piece[2:], out=box[2:])
    return restored
