"""Kinds of findings, and findings of a check: collected one by one, and reported by kind and split."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from ifkd.core.config import Schema
from ifkd.data.account import EXAMPLES, printable

Severity = Literal["error", "warning", "note"]
LISTED = 8


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding."""

    severity: Severity
    """error: training refuses the file; warning: results mislead; note: harmless."""
    title: str
    """What is counted, in the plural."""
    hint: str
    """How to fix it, as a sentence."""
    fix: str | None = None
    """What the fixed copy does; None if a person must decide."""


LEFT_OUT, LEFT_OUT_WITH_OBJECTS, EMPTY = "left out", "left out with their objects", "written, empty"
POLYGON_LEFT_OUT = "polygon left out"
UNIQUE_ID = "Give each an id of its own, and correct the annotations that refer to it."

ERRORS: dict[str, tuple[str, str, str]] = {
    "lists_missing": ("missing lists", "Write `images`, `annotations` and `categories`, each a list.", EMPTY),
    "categories_malformed": ("categories without a valid id or name", "Give each an integer id and a name.", LEFT_OUT),
    "category_ids_not_unique": ("category ids with two names", UNIQUE_ID, LEFT_OUT_WITH_OBJECTS),
    "category_names_not_unique": ("names of several categories", "Merge these categories.", "merged into the first"),
    "categories_differ": (
        "files whose classes or their order differ from the first file's",
        "Give all splits the same categories, else a label means another class in each.",
        "one list for all",
    ),
    "images_malformed": (
        "images without a valid id or file_name",
        "Give each an integer id and a file_name.",
        LEFT_OUT_WITH_OBJECTS,
    ),
    "image_ids_not_unique": ("image ids of several files", UNIQUE_ID, LEFT_OUT_WITH_OBJECTS),
    "sizes_malformed": (
        "images whose height or width is not a positive integer",
        "State them in pixels.",
        "replaced by the file's size",
    ),
    "sizes_differ": (
        "images whose stated size is not the file's",
        "Check that the boxes belong to the file: it may have been resized, rotated or replaced.",
        "replaced by the file's size where the boxes show that they belong to the file, else the image is left out",
    ),
    "orientation_unclear": (
        "images that an Exif orientation turns, and whose size does not show how the labels fit",
        "Save each without the orientation, as its labels show it.",
        LEFT_OUT,
    ),
    "files_outside_folder": ("file names outside the image folder", "Move the files into the folder.", LEFT_OUT),
    "files_missing": ("missing image files", "Copy them, or name the right folder with --images.", LEFT_OUT),
    "file_names_differ": (
        "file names that are not written as the file's (case, \\ for /, %20 for a space)",
        "Write them as the files are named.",
        "replaced by the file's name",
    ),
    "files_unreadable": ("empty, truncated or damaged image files", "Copy them again from their source.", LEFT_OUT),
    "files_too_large": (
        "images with more pixels than training accepts",
        "Cut them into tiles with `ifkd data slice`, or raise data.imagery.max_pixels in the recipe.",
        LEFT_OUT,
    ),
    "annotations_malformed": (
        "annotations without a bbox of four numbers",
        "Write bbox as [x, y, width, height] in pixels.",
        LEFT_OUT,
    ),
    "flags_unclear": ("annotations whose iscrowd is neither 0 nor 1", "Write 0 or 1.", "read as 0"),
    "annotations_of_unknown_image": ("annotations of unlisted images", "List the image, or delete them.", LEFT_OUT),
    "annotations_of_unknown_category": (
        "annotations of unlisted categories",
        "List the category, or correct the category_id.",
        LEFT_OUT,
    ),
    "boxes_not_finite": ("boxes with NaN or infinity", "Draw them again.", LEFT_OUT),
    "boxes_without_area": ("boxes whose width or height is 0 or below", "Draw them again, or delete them.", LEFT_OUT),
    "boxes_outside_image": (
        "boxes completely outside their image",
        "Check whether they belong to another image.",
        LEFT_OUT,
    ),
    "boxes_cross_border": (
        "boxes that cross the image border by more than 2 pixels",
        "Check whether the image was cropped or resized after labeling.",
        "clipped to the image",
    ),
}
WARNINGS: dict[str, tuple[str, str, str | None]] = {
    "byte_order_mark": ("byte order marks before the JSON", "Save the file as UTF-8 without one.", "removed"),
    "ids_not_integers": ("ids that are text", "COCO tools expect integers.", "read as integers, else numbered"),
    "images_listed_twice": ("entries that list a file again", "List every file once.", "merged into the first entry"),
    "orientation_displayed": (
        "images whose labels fit them as their Exif orientation displays them, not as stored",
        "Nothing for training, which turns them; other programs may not.",
        "boxes turned to the stored image",
    ),
    "categories_of_groups": (
        "categories without an object that only group others (supercategory)",
        "Delete them, else the detector has a class without objects.",
        LEFT_OUT,
    ),
    "split_empty": ("splits without a usable image", "See the findings above.", None),
    "annotation_ids_not_unique": (
        "annotations without a unique id",
        "Number them: some tools keep one annotation per id.",
        "numbered",
    ),
    "boxes_tiny": ("boxes less than 1 pixel wide or high", "Delete them: no pixel shows the object.", LEFT_OUT),
    "boxes_duplicated": (
        "boxes that repeat another of their class (IoU of 0.95 or more)",
        "Delete one of each two.",
        "the first is kept",
    ),
    "boxes_of_two_classes": (
        "boxes in the same place as one of another class (IoU of 0.95 or more)",
        "Decide for one class, or merge the two by data.merge_classes.",
        None,
    ),
    "polygons_without_area": (
        "polygons (segmentation) with fewer than three points or without an area",
        "Draw them again, or delete them: the object has no oriented box.",
        POLYGON_LEFT_OUT,
    ),
    "polygons_apart_from_boxes": (
        "polygons (segmentation) in another place than their bbox (IoU of their upright box below 0.5)",
        "Check which of the two is the object: an oriented detector learns the polygon.",
        POLYGON_LEFT_OUT,
    ),
    "boxes_not_oriented": (
        "objects without an oriented box (segmentation of four corners)",
        "Convert the data set from its source, which has polygons: training of an oriented detector refuses it.",
        None,
    ),
    "images_in_two_splits": (
        "images with the same pixels as one of another split",
        "Remove them from training, else metrics are too good.",
        "kept in the later split only (test before validation before training)",
    ),
    "near_duplicates_across_splits": (
        "images that look like one of another split",
        "Compare each pair on the page; move both to one split if they show one scene.",
        None,
    ),
    "images_duplicated": (
        "images with the same pixels as one of the same split",
        "Delete the copies, else they count twice.",
        "the copy with the most boxes is kept",
    ),
    "scenes_in_two_splits": ("scenes in two splits", "Move each to one split, else metrics are too good.", None),
    "classes_without_objects": (
        "classes without an object in the split",
        "Add images of them, move some from another split, or merge the class by data.merge_classes.",
        None,
    ),
}
NOTES: dict[str, tuple[str, str, str | None]] = {
    "category_ids_not_contiguous": ("unused category ids below the last", "Nothing: labels follow the order.", None),
    "boxes_cross_border_slightly": (
        "boxes that cross the image border by up to 2 pixels, as label tools round",
        "Nothing: readers clip them.",
        "clipped to the image",
    ),
    "polygons_of_other_points": (
        "polygons (segmentation) of other than four points",
        "Nothing: an oriented detector learns the smallest rectangle around each.",
        None,
    ),
    "quadrilaterals_not_rectangles": (
        "quadrilaterals (segmentation) that fill less than 0.9 of the smallest rectangle around them",
        "Nothing: an oriented detector learns that rectangle.",
        None,
    ),
    "near_duplicates_in_split": (
        "images that look like one of the same split",
        "Keep them in one split; delete copies.",
        None,
    ),
}
KINDS = {
    **{kind: FindingKind("error", *texts) for kind, texts in ERRORS.items()},
    **{kind: FindingKind("warning", *texts) for kind, texts in WARNINGS.items()},
    **{kind: FindingKind("note", *texts) for kind, texts in NOTES.items()},
}
"""Every kind of finding, in the order of reports."""
DROPS_BOX = ("boxes_not_finite", "boxes_without_area", "boxes_outside_image", "boxes_tiny", "boxes_duplicated")
"""Kinds for which the fixed copy leaves a box out."""
DROPS_POLYGON = ("polygons_without_area", "polygons_apart_from_boxes")
"""Kinds for which the fixed copy leaves a polygon out and keeps the box."""


class Finding(Schema):
    """All findings of one kind in one split."""

    kind: str
    severity: Severity
    split: str
    """One split, or two joined by "and"."""
    count: int
    title: str
    examples: tuple[str, ...]
    """The first of them."""
    suggestion: str | None = None
    """Probable cause, derived from this data set's numbers."""
    hint: str
    fix: str | None
    """As in `FindingKind`."""


@dataclass(slots=True)
class Findings:
    """Collector of findings."""

    _examples: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _suggestions: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, kind: str, split: str, example: str) -> None:
        """Count one of a kind in a split."""
        self._counts[kind, split] += 1
        if self._counts[kind, split] <= EXAMPLES:
            self._examples[kind, split].append(printable(example))

    def suggest(self, kind: str, split: str, text: str) -> None:
        """Add a probable cause of the findings of a kind."""
        self._suggestions[kind, split] = text

    def all(self) -> tuple[Finding, ...]:
        """Return all findings by severity, then in the order of `KINDS`."""
        order = list(KINDS)
        found = []
        for (kind, split), count in self._counts.items():
            examples, cause = tuple(self._examples[kind, split]), self._suggestions.get((kind, split))
            texts = asdict(KINDS[kind])
            found.append(Finding(kind=kind, split=split, count=count, examples=examples, suggestion=cause, **texts))
        return tuple(sorted(found, key=lambda one: order.index(one.kind)))


def first_few(items: Iterable[object]) -> str:
    """Return the first few items, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more
