"""Form of a file's boxes: corners or fractions of the image, where COCO states x, y, width, height in pixels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ifkd.core.errors import DataError
from ifkd.data.check.box_checks import box_problem, check_boxes
from ifkd.data.check.finding import Findings
from ifkd.data.check.image_inspection import CheckedImage
from ifkd.data.check.lenient_coco import BoxEntry

Numbers = tuple[float, float, float, float]
"""The four numbers of a `bbox`."""

SUGGESTED_FRACTION = 0.5
"""Least fraction of the invalid boxes that another form must fit before it is suggested."""
INVALID_FRACTION = 0.25
"""Least fraction of boxes that cross the border before corners are suggested: read as widths, most corners do."""
FITTING_FRACTION = 0.95
"""Least fraction of all boxes that a form must fit before boxes are converted from it."""
INVALID = frozenset({"boxes_cross_border", "boxes_outside_image"})
"""Kinds of findings of most corners that are read as widths."""
VALID = frozenset({None, "boxes_cross_border_slightly", "boxes_tiny"})

FORMS: dict[str, Callable[[Numbers, tuple[int, int]], Numbers]] = {
    "corners": lambda box, _: (box[0], box[1], box[2] - box[0], box[3] - box[1]),
    "fractions": lambda box, size: (box[0] * size[1], box[1] * size[0], box[2] * size[1], box[3] * size[0]),
    "fractions_of_corners": lambda box, size: FORMS["fractions"](FORMS["corners"](box, size), size),
    "fractions_of_centers": lambda box, size: FORMS["fractions"](
        (box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]), size
    ),
}
"""Form -> function that returns x, y, width, height in pixels; the size is (height, width)."""
TEXTS = {
    "corners": "{} of {} fit as x1, y1, x2, y2: the file may have corners instead of widths.",
    "fractions": "{} of {} have numbers up to 1: they may be fractions of the image, not pixels.",
}


def suggest_box_form(images: Sequence[CheckedImage], split: str, findings: Findings) -> None:
    """Suggest another form of a split's boxes if it makes most of the invalid ones valid."""
    found = _suggested(images)
    if found is not None:
        form, fitting, count = found
        for kind in ("boxes_cross_border", "boxes_outside_image") if form == "corners" else ("boxes_tiny",):
            findings.suggest(kind, split, TEXTS[form].format(fitting, count))


def in_pixel_widths(images: Sequence[CheckedImage]) -> tuple[str | None, list[CheckedImage]]:
    """Return the form of a file's boxes, None for COCO's, and its images with boxes and findings in COCO's form.

    Raises:
        DataError: The boxes have another form, and no form or several fit them.
    """
    suggested = _suggested(images)
    if suggested is None:
        return None, list(images)
    boxes = _boxes(images)
    forms = [form for form in FORMS if form.startswith(suggested[0])]
    fitting = [form for form in forms if _fitting(boxes, form) >= FITTING_FRACTION * len(boxes)]
    if len(fitting) != 1:
        raise DataError(
            "The boxes have another form than COCO's x, y, width, height in pixels, and no fixed copy is written",
            got=TEXTS[suggested[0]].format(*suggested[1:]),
            expected=f"one of the forms {', '.join(forms)}, where {' and '.join(fitting) or 'none'} would fit",
            hint="Convert the boxes with the tool that wrote them.",
        )
    return fitting[0], [_converted(image, fitting[0]) for image in images]


def _converted(image: CheckedImage, form: str) -> CheckedImage:
    size = image.size
    if size is None:
        return image
    entry = replace(image.entry, boxes=tuple(_in_pixels(box, form, size) for box in image.entry.boxes))
    found = tuple(check_boxes(entry, size, split=image.split, findings=Findings()))
    return replace(image, entry=entry, box_findings=found)


def _boxes(images: Sequence[CheckedImage]) -> list[tuple[BoxEntry, tuple[int, int]]]:
    """Return the boxes with finite numbers, each with the (height, width) of its image."""
    pairs = [(box, image.size) for image in images for box in image.entry.boxes]
    return [(box, size) for box, size in pairs if size is not None and all(map(math.isfinite, box.bbox))]


def _suggested(images: Sequence[CheckedImage]) -> tuple[str, int, int] | None:
    """Return the form that would make most invalid boxes valid: its name, how many boxes fit it, and of how many."""
    boxes = _boxes(images)
    outside = [(box, size) for box, size in boxes if box_problem(box.corners, size) in INVALID]
    as_corners = _fitting(outside, "corners")
    if as_corners > SUGGESTED_FRACTION * len(outside) and len(outside) >= INVALID_FRACTION * len(boxes):
        return "corners", as_corners, len(outside)
    as_fractions = sum(all(0 <= value <= 1 for value in box.bbox) and min(box.bbox[2:]) > 0 for box, _ in boxes)
    return ("fractions", as_fractions, len(boxes)) if as_fractions > SUGGESTED_FRACTION * len(boxes) else None


def _fitting(boxes: Sequence[tuple[BoxEntry, tuple[int, int]]], form: str) -> int:
    """Return how many boxes are valid if they have a form."""
    return sum(box_problem(_in_pixels(box, form, size).corners, size) in VALID for box, size in boxes)


def _in_pixels(box: BoxEntry, form: str, size: tuple[int, int]) -> BoxEntry:
    return replace(box, bbox=FORMS[form](box.bbox, size))
