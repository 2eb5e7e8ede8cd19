"""Kinds of findings: severity, title, how to fix them, and what the fixed copy does."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding."""

    severity: Severity
    """error: training or evaluation refuses the file; warning: results mislead; note: harmless."""
    title: str
    """What is counted, in the plural."""
    hint: str
    """How to fix it, as a sentence."""
    fix: str | None = None
    """What the fixed copy does; None if a person must decide."""


def _error(title: str, hint: str, fix: str | None = None) -> FindingKind:
    return FindingKind("error", title, hint, fix)


def _warning(title: str, hint: str, fix: str | None = None) -> FindingKind:
    return FindingKind("warning", title, hint, fix)


def _note(title: str, hint: str, fix: str | None = None) -> FindingKind:
    return FindingKind("note", title, hint, fix)


LEFT_OUT = "left out"
KINDS = {
    # the file
    "byte_order_mark": _error("byte order marks before the JSON", "Save the file as UTF-8 without one.", "removed"),
    "lists_missing": _error(
        "missing lists of a COCO file", "Write `images`, `annotations` and `categories`, each a list.", "written, empty"
    ),
    # categories
    "categories_malformed": _error(
        "categories without a valid id or name", "Give each an integer `id` and a `name`.", LEFT_OUT
    ),
    "category_ids_not_unique": _error(
        "category ids with two names",
        "Give each class an id of its own, and correct the `category_id` of its objects.",
        "left out with their objects",
    ),
    "category_names_not_unique": _error(
        "names of several categories", "Merge the categories of one name.", "merged into the first"
    ),
    "category_ids_not_contiguous": _note(
        "unused category ids between 1 and the last", "Nothing: labels follow the order of the ids."
    ),
    "categories_differ": _error(
        "files whose classes or their order differ from the first file's",
        "Give all splits the same categories, else a label means another class in each.",
        "one list for all",
    ),
    # images
    "images_malformed": _error(
        "entries of `images` without a valid id or file_name",
        "Give each an integer `id` and a `file_name`.",
        "left out with their objects",
    ),
    "ids_not_integers": _warning(
        "images and categories whose id is text", "Number them: COCO tools expect integers.", "numbered"
    ),
    "image_ids_not_unique": _error(
        "image ids of several files",
        "Give each image an id of its own, and correct the `image_id` of its annotations.",
        "left out with their objects, which cannot be assigned",
    ),
    "images_listed_twice": _warning(
        "entries that list a file again", "List every file once.", "merged into the first entry"
    ),
    "sizes_malformed": _error(
        "images whose height or width is not a positive integer",
        "State the file's height and width in pixels.",
        "replaced by the file's size",
    ),
    "sizes_differ": _error(
        "images whose stated size is not the file's",
        "Check that the boxes belong to the file: it may have been resized, rotated (Exif) or replaced.",
        "replaced by the file's size where all boxes fit into it, else the image is left out",
    ),
    "files_outside_folder": _error(
        "file names that lead out of the image folder",
        "Name files inside the image folder, without links out of it.",
        LEFT_OUT,
    ),
    "files_missing": _error("missing image files", "Copy them, or name the right folder with --images.", LEFT_OUT),
    "file_names_differ_in_case": _error(
        "file names that differ from the file's in upper and lower case",
        "Write them as the files are named; some systems distinguish case.",
        "replaced by the file's name",
    ),
    "files_unreadable": _error(
        "image files that are empty, truncated or damaged",
        "Copy them again from their source; compare sizes or digests.",
        LEFT_OUT,
    ),
    "files_too_large": _error(
        "images with more pixels than training accepts",
        "Cut them into tiles with `ifkd data slice`, or raise data.imagery.max_pixels in the recipe.",
        LEFT_OUT,
    ),
    "split_empty": _warning("splits without a usable image", "See the findings above."),
    # annotations
    "annotations_malformed": _error(
        "annotations that are no objects, or whose bbox is not four numbers",
        "Write `bbox` as [x, y, width, height] in pixels.",
        LEFT_OUT,
    ),
    "annotation_ids_not_unique": _warning(
        "annotations without a unique id",
        "Number them: some tools keep one annotation per id.",
        "numbered",
    ),
    "annotations_of_unknown_image": _error(
        "annotations of images that the file does not list", "List the image, or delete its annotations.", LEFT_OUT
    ),
    "annotations_of_unknown_category": _error(
        "annotations of a category that the file does not list",
        "List the category, or correct their category_id.",
        LEFT_OUT,
    ),
    "boxes_not_finite": _error("boxes with NaN or infinity", "Draw them again.", LEFT_OUT),
    "boxes_without_area": _error(
        "boxes whose width or height is 0 or below", "Draw them again, or delete them.", LEFT_OUT
    ),
    "boxes_outside_image": _error(
        "boxes completely outside their image", "Check whether they belong to another image.", LEFT_OUT
    ),
    "boxes_cross_border": _error(
        "boxes that cross the image border by more than 2 pixels",
        "Check whether the image was cropped or resized after labeling.",
        "clipped to the image",
    ),
    "boxes_cross_border_slightly": _note(
        "boxes that cross the image border by up to 2 pixels, as label tools round",
        "Nothing: readers clip them.",
        "clipped to the image",
    ),
    "boxes_tiny": _warning(
        "boxes less than 1 pixel wide or high", "Delete them: no network can learn what no pixel shows.", LEFT_OUT
    ),
    "boxes_duplicated": _warning(
        "boxes that repeat another of their class (IoU of 0.95 or more)", "Delete one of each two.", "the first is kept"
    ),
    "boxes_of_two_classes": _warning(
        "boxes in the same place as one of another class (IoU of 0.95 or more)",
        "Decide for one class, or merge the two by data.merge_classes.",
    ),
    # splits
    "images_in_two_splits": _warning(
        "images with the same pixels as one of another split",
        "Remove them from training, else metrics of the other split are too good.",
        "kept in the later split only (test before validation before training)",
    ),
    "near_duplicates_across_splits": _warning(
        "images that look like one of another split",
        "Compare each pair on the page; where both show one scene, move both to one split.",
    ),
    "images_duplicated": _warning(
        "images with the same pixels as one of the same split",
        "Delete the copies, else they count twice.",
        "the copy with the most boxes is kept",
    ),
    "near_duplicates_in_split": _note(
        "images that look like one of the same split",
        "Nothing, unless they are copies: then delete them. Keep them in one split.",
    ),
    "scenes_in_two_splits": _warning(
        "scenes (`scene`) in two splits",
        "Split by scene, else metrics of the other split are too good.",
    ),
    "classes_without_objects": _warning(
        "classes without an object in the split",
        "Add images of them, move some from another split, or merge the class by data.merge_classes.",
    ),
}
"""Every kind of finding, in the order of reports."""
DROPS_BOX = frozenset(
    {"boxes_not_finite", "boxes_without_area", "boxes_outside_image", "boxes_tiny", "boxes_duplicated"}
)
"""Kinds for which the fixed copy leaves a box out."""
