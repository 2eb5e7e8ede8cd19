"""What can be wrong with a data set: how bad it is, how to mend it, and what the cleaned copy does about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ifkd.core.config import Schema

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 8
LONGEST_EXAMPLE = 300


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A kind of finding."""

    severity: Severity
    """error: training or evaluation would refuse the file; warning: they would run, and mislead; note: harmless."""
    title: str
    """What was counted, in the plural."""
    hint: str
    """What a person does about it."""
    fix: str | None = None
    """What the cleaned copy does about it; None: it leaves that to a person."""


LEFT_OUT = "left out"
KINDS = {
    # the file
    "byte_order_mark": FindingKind(
        "error", "byte order marks before the JSON", "Save the file as UTF-8 without one.", "written without"
    ),
    "lists_absent": FindingKind(
        "error",
        "lists that a COCO file has and this one has not",
        "Write `images`, `annotations` and `categories`, each a list.",
        "written, empty",
    ),
    # categories
    "categories_malformed": FindingKind(
        "error",
        "categories without a usable id or name",
        "Give each an `id` that is a whole number, and a `name`.",
        LEFT_OUT,
    ),
    "category_ids_repeated": FindingKind(
        "error",
        "category ids with two names",
        "Nobody but you can say which name its objects have: give each class an id of its own.",
        "left out with their objects",
    ),
    "category_names_repeated": FindingKind(
        "error", "names of several categories", "Merge the categories that have one name.", "merged into the first"
    ),
    "category_ids_with_holes": FindingKind(
        "note", "category ids that are missing between 1 and the last", "Nothing: labels are numbered by order."
    ),
    "categories_differ": FindingKind(
        "error",
        "files whose classes or their order differ from the first one's",
        "Give all splits one list of categories, else a label means another class in each.",
        "one list for all",
    ),
    # images
    "images_malformed": FindingKind(
        "error",
        "entries of `images` without a usable id or file_name",
        "Give each an `id` that is a whole number, and a `file_name`.",
        "left out with their objects",
    ),
    "ids_no_number": FindingKind(
        "warning",
        "images and categories whose id is text",
        "Number them: COCO's programs expect whole numbers.",
        "numbered anew",
    ),
    "image_ids_repeated": FindingKind(
        "error",
        "image ids that stand for several files",
        "Number the images anew, and the `image_id` of their annotations with them.",
        "left out with their objects, as nobody can say whose they are",
    ),
    "images_listed_twice": FindingKind(
        "warning", "entries that list a file again", "List every file once.", "merged into the first entry"
    ),
    "sizes_malformed": FindingKind(
        "error",
        "images whose height or width is no whole number above 0",
        "State the file's height and width in pixels.",
        "the file's size is stated",
    ),
    "sizes_differ": FindingKind(
        "error",
        "images whose stated size is not the file's",
        "Look whether the boxes belong to the file: it may have been resized, turned (Exif) or replaced.",
        "the file's size is stated where all boxes fit into it, else the image is left out",
    ),
    "files_outside": FindingKind(
        "error",
        "names that lead out of the image folder",
        "Name files inside the image folder, without links out of it.",
        LEFT_OUT,
    ),
    "files_absent": FindingKind(
        "error", "images that are not there", "Copy them, or name the right folder with --images.", LEFT_OUT
    ),
    "names_in_other_case": FindingKind(
        "error",
        "names that differ from the file's in upper and lower case",
        "Write them as the files are named; some systems see a difference.",
        "written as the file is named",
    ),
    "files_unreadable": FindingKind(
        "error",
        "image files that are empty, cut short or damaged",
        "Copy them again from their source; compare sizes or digests.",
        LEFT_OUT,
    ),
    "files_too_large": FindingKind(
        "error",
        "images with more pixels than training takes",
        "Cut them into tiles with `ifkd data slice`, or raise data.imagery.max_pixels in the recipe.",
        LEFT_OUT,
    ),
    "split_empty": FindingKind("warning", "splits without an image that can be used", "Look at the findings above."),
    # annotations
    "annotations_malformed": FindingKind(
        "error",
        "annotations that are no objects, or whose bbox is not four numbers",
        "Write `bbox` as [x, y, width, height] in pixels.",
        LEFT_OUT,
    ),
    "annotation_ids_repeated": FindingKind(
        "warning",
        "annotations without an id of their own",
        "Number them anew: some programs keep one annotation for each id.",
        "numbered anew",
    ),
    "image_unknown": FindingKind(
        "error",
        "annotations of images that the file does not list",
        "List the image, or delete its annotations.",
        LEFT_OUT,
    ),
    "category_unknown": FindingKind(
        "error",
        "annotations of a category that the file does not list",
        "List the category, or correct their category_id.",
        LEFT_OUT,
    ),
    "boxes_not_finite": FindingKind("error", "boxes with NaN or infinity", "Draw them again.", LEFT_OUT),
    "boxes_without_area": FindingKind(
        "error", "boxes whose width or height is 0 or below", "Draw them again, or delete them.", LEFT_OUT
    ),
    "boxes_outside": FindingKind(
        "error", "boxes that lie wholly outside their image", "Look whether they belong to another image.", LEFT_OUT
    ),
    "boxes_reach_out": FindingKind(
        "error",
        "boxes that reach more than 2 pixels out of their image",
        "Look whether the image was cut or resized after it was labeled.",
        "cut to the image",
    ),
    "boxes_overshoot": FindingKind(
        "note",
        "boxes that reach up to 2 pixels out of their image, as label tools round",
        "Nothing: they are cut when they are read.",
        "cut to the image",
    ),
    "boxes_tiny": FindingKind(
        "warning",
        "boxes less than 1 pixel wide or high",
        "Delete them: no network can learn what no pixel shows.",
        LEFT_OUT,
    ),
    "boxes_repeated": FindingKind(
        "warning",
        "boxes that repeat another of their class (IoU of 0.95 or more)",
        "Delete one of each two.",
        "the first is kept",
    ),
    "boxes_of_two_classes": FindingKind(
        "warning",
        "boxes that share their place with one of another class (IoU of 0.95 or more)",
        "Decide for one class, or merge the two by data.merge_classes.",
    ),
    # splits
    "images_shared": FindingKind(
        "warning",
        "images that are, pixel for pixel, in two splits",
        "Take them out of training, else what is measured on the other split is flattered.",
        "kept in the later split alone (test before validation before training)",
    ),
    "images_alike_shared": FindingKind(
        "warning",
        "images that look like one of another split",
        "Compare each pair on the page; where they show one place, move both to one split.",
    ),
    "images_repeated": FindingKind(
        "warning",
        "images that are, pixel for pixel, one of the same split again",
        "Delete the copies, else they weigh double.",
        "the copy with the most boxes is kept",
    ),
    "images_alike": FindingKind(
        "note",
        "images that look like one of the same split",
        "Nothing, unless they are copies: then delete them. Never part them between splits.",
    ),
    "places_shared": FindingKind(
        "warning",
        "places (`scene`) that are in two splits",
        "Split by place, else what is measured on the other split is flattered.",
    ),
    "classes_absent": FindingKind(
        "warning",
        "classes without an object in the split",
        "Add images of them, move some from another split, or merge the class by data.merge_classes.",
    ),
}
"""Every kind, in the order in which they are told."""
DROPS_BOX = frozenset(
    {"boxes_not_finite", "boxes_without_area", "boxes_outside", "boxes_tiny", "boxes_repeated", "category_unknown"}
)
"""Kinds that make the cleaned copy leave a box out."""


class Finding(Schema):
    """Something found in a split."""

    kind: str
    severity: Severity
    split: str
    """Or `all`."""
    count: int
    title: str
    """What was counted."""
    examples: tuple[str, ...]
    """The first of them."""
    suggestion: str | None = None
    """What this data set's own numbers suggest."""
    hint: str
    fix: str | None
    """What the cleaned copy does about it; None: it leaves that to a person."""


@dataclass(slots=True)
class Findings:
    """Findings, gathered while a data set is looked at."""

    _counts: dict[str, dict[str, int]] = field(default_factory=dict)
    _examples: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    _suggestions: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, kind: str, split: str, example: str) -> None:
        """Note one of a kind."""
        counts = self._counts.setdefault(kind, {})
        counts[split] = counts.get(split, 0) + 1
        examples = self._examples.setdefault(kind, {}).setdefault(split, [])
        if len(examples) < EXAMPLES:
            examples.append(shown(example))

    def suggest(self, kind: str, split: str, text: str) -> None:
        """Note what the findings of a kind suggest."""
        self._suggestions[kind, split] = text

    def all(self) -> tuple[Finding, ...]:
        """Return what was found, the gravest first."""
        order = list(KINDS)
        found = [
            Finding(
                kind=kind,
                severity=KINDS[kind].severity,
                split=split,
                count=count,
                title=KINDS[kind].title,
                examples=tuple(self._examples[kind][split]),
                suggestion=self._suggestions.get((kind, split)),
                hint=KINDS[kind].hint,
                fix=KINDS[kind].fix,
            )
            for kind, by_split in self._counts.items()
            for split, count in by_split.items()
        ]
        return tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.severity), order.index(one.kind))))


def shown(text: str) -> str:
    """Return text of unknown origin such that any terminal and file can show it: printable, on one line, not long."""
    plain = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return plain if len(plain) <= LONGEST_EXAMPLE else f"{plain[: LONGEST_EXAMPLE - 1]}…"


def listed(items: Iterable[object], *, most: int = 8) -> str:
    """Return the first few items, and how many more there are."""
    words = [str(item) for item in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
