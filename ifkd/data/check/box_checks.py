"""Boxes looked at in their image: outside, without area, tiny, repeated."""

import math
from collections.abc import Sequence

import numpy as np

from ifkd.core.detections import Array, pairwise_iou
from ifkd.data.check.finding import DROPS_BOX, Findings
from ifkd.data.check.lenient_coco import BoxEntry, ImageEntry
from ifkd.data.coco import OVERSHOOT_PX

TINY_PX = 1.0
SAME_IOU = 0.95
FARTHEST_PX = 1e9
"""Boxes are compared within this, so that no area overflows."""
ROWS = 256
"""Boxes compared with all others at once, which bounds the memory of a crowded image."""
HINT_SHARE = 0.5
"""So much of what is wrong must fit another reading of the numbers for it to be suggested."""


def judge_boxes(image: ImageEntry, size: tuple[int, int] | None, *, split: str, findings: Findings) -> list[str | None]:
    """Return, for each box of an image, the kind of finding that applies to it, and note it in `findings`.

    Args:
        image: The image.
        size: Its (height, width), pixels; without one, nothing is said about where boxes lie.
        split: Where findings are noted.
        findings: The notes.
    """
    verdicts = [_verdict(box.corners, size) for box in image.boxes]
    whole = [index for index, kind in enumerate(verdicts) if kind not in DROPS_BOX]
    for index, other, relation in _pairs(image, whole):
        verdicts[index] = relation
        told = f"{_name(image.boxes[index])} and {_name(image.boxes[other])} of {image.name}"
        findings.add(relation, split, told)
    for box, kind in zip(image.boxes, verdicts, strict=True):
        if kind is not None and kind not in {"boxes_repeated", "boxes_of_two_classes"}:
            where = "" if size is None else f" in {size[1]}x{size[0]}"
            findings.add(kind, split, f"{_name(box)} of {image.name}: {_corner_words(box.corners)}{where}")
    return verdicts


def cut(corners: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box, x1 y1 x2 y2, cut to an image of (height, width)."""
    x1, y1, x2, y2 = corners
    return _within(x1, size[1]), _within(y1, size[0]), _within(x2, size[1]), _within(y2, size[0])


def fits(corners: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    """Return whether a box is one that the strict reader takes in an image of (height, width)."""
    return _verdict(corners, size) in {None, "boxes_overshoot", "boxes_tiny"}


def _verdict(corners: tuple[float, float, float, float], size: tuple[int, int] | None) -> str | None:
    x1, y1, x2, y2 = corners
    if not all(map(math.isfinite, corners)):
        return "boxes_not_finite"
    if x2 <= x1 or y2 <= y1:
        return "boxes_without_area"
    return None if size is None else _verdict_of_place(corners, size)


def _verdict_of_place(corners: tuple[float, float, float, float], size: tuple[int, int]) -> str | None:
    x1, y1, x2, y2 = corners
    inner = cut(corners, size)
    seen = min(inner[2] - inner[0], inner[3] - inner[1])
    overshoot = max(-x1, -y1, x2 - size[1], y2 - size[0])
    if seen <= 0 or (seen < TINY_PX and overshoot > OVERSHOOT_PX):
        return "boxes_outside"
    if seen < TINY_PX:
        return "boxes_tiny"
    if overshoot > OVERSHOOT_PX:
        return "boxes_reach_out"
    return "boxes_overshoot" if overshoot > 0 else None


def _within(value: float, most: int) -> float:
    return min(max(value, 0.0), float(most))


def _pairs(image: ImageEntry, whole: Sequence[int]) -> list[tuple[int, int, str]]:
    """Return (box, an earlier one in its place, kind), each box once; `whole` are the boxes to compare."""
    found: list[tuple[int, int, str]] = []
    if len(whole) < 2:
        return found
    boxes: Array = np.array([image.boxes[index].corners for index in whole], np.float64)
    boxes = boxes.clip(-FARTHEST_PX, FARTHEST_PX)
    repeated: set[int] = set()
    for start in range(0, len(whole), ROWS):
        rows, columns = np.nonzero(pairwise_iou(boxes[start : start + ROWS], boxes) >= SAME_IOU)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            index, other = whole[row], whole[column]
            if column >= row or index in repeated or other in repeated:
                continue
            repeated.add(index)
            alike = image.boxes[index].category == image.boxes[other].category
            found.append((index, other, "boxes_repeated" if alike else "boxes_of_two_classes"))
    return found


def hint_at_form(images: Sequence[tuple[ImageEntry, tuple[int, int] | None]], split: str, findings: Findings) -> None:
    """Suggest another reading of a split's boxes where many are wrong and that reading makes them right.

    Args:
        images: Each image with its (height, width).
        split: Which split.
        findings: Where the suggestion is noted.
    """
    wrong = corners_fit = 0
    shares = boxes = 0
    for image, size in images:
        for box in image.boxes:
            x1, y1, x2, y2 = box.corners
            if size is None or not all(map(math.isfinite, box.corners)):
                continue
            boxes += 1
            shares += 0 <= x1 <= 1 and 0 <= y1 <= 1 and x2 - x1 <= 1 and y2 - y1 <= 1
            if _verdict(box.corners, size) in {"boxes_reach_out", "boxes_outside"}:
                wrong += 1
                corners_fit += fits((x1, y1, x2 - x1, y2 - y1), size)
    if wrong and corners_fit > HINT_SHARE * wrong:
        text = f"{corners_fit} of {wrong} would fit as x1, y1, x2, y2: the file may hold corners, not widths."
        findings.suggest("boxes_reach_out", split, text)
        findings.suggest("boxes_outside", split, text)
    if boxes and shares > HINT_SHARE * boxes:
        findings.suggest(
            "boxes_tiny",
            split,
            f"{shares} of {boxes} hold numbers up to 1: they may be shares of the image, not pixels.",
        )


def _name(box: BoxEntry) -> str:
    identity = box.content.get("id")
    return f"annotation {identity!r}" if isinstance(identity, int | str) else "an annotation"


def _corner_words(corners: tuple[float, float, float, float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in corners) + "]"
