"""A data set, all its splits together, looked at from every side."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ifkd import __version__, recipe
from ifkd.data.check.box_checks import cut, hint_at_form, judge_boxes
from ifkd.data.check.check_record import (
    CheckRecord,
    FormRecord,
    PairRecord,
    SideRecord,
    SizeRecord,
    SourceRecord,
    SplitRecord,
)
from ifkd.data.check.finding import DROPS_BOX, Findings, shown
from ifkd.data.check.image_inspection import FileFacts, inspect_files
from ifkd.data.check.lenient_coco import AnnotationFile, BoxEntry, ImageEntry, read_entries
from ifkd.data.check.near_duplicates import DuplicatePair, copies, near_duplicates
from ifkd.data.splits import held_out_places, path_of
from ifkd.imagery.image_files import Imagery

SMALL_PX, LARGE_PX = 32.0, 96.0
"""COCO's bounds between small, medium and large objects: roots of their areas."""
PAIRS_RECORDED = 200
RANKS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
"""Splits by what hangs on them; one of another name counts as training."""


@dataclass(frozen=True, slots=True)
class CheckSource:
    """An annotation file and the split it holds."""

    split: str
    path: Path
    images: Path | None = None
    """The folder of its images; by default `images` beside the file."""
    held_out: float | None = None
    """The share of its images, by place, that is the split `validation`."""


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What is looked at."""

    sources: tuple[CheckSource, ...]
    imagery: Imagery = field(default_factory=Imagery)
    merge_classes: Mapping[str, str] = field(default_factory=dict)
    """Class name -> the class its objects are counted as."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckedImage:
    """An image and what was found of it."""

    entry: ImageEntry
    facts: FileFacts
    split: str
    source: int
    """Index of its annotation file."""
    classes: tuple[str, ...]
    """Of each box, its class."""
    verdicts: tuple[str | None, ...]
    """Of each box, the kind of finding that applies to it."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels: the file's, else what the entry states."""
        return self.facts.size or self.entry.size

    @property
    def objects(self) -> list[tuple[BoxEntry, str]]:
        """Boxes that can be used, ignored regions left out, each with its class."""
        return [
            (box, name)
            for box, name, verdict in zip(self.entry.boxes, self.classes, self.verdicts, strict=True)
            if verdict not in DROPS_BOX and not box.ignore
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """A data set that was looked at."""

    files: tuple[AnnotationFile, ...]
    splits: tuple[str, ...]
    images: tuple[CheckedImage, ...]
    copies: tuple[tuple[int, ...], ...]
    """Groups of images that are alike pixel for pixel, as indices."""
    across: tuple[DuplicatePair, ...]
    """Images that look like one of another split."""
    within: tuple[DuplicatePair, ...]
    """Images that look like one of their own split."""
    record: CheckRecord


def check_plan(data: recipe.DataOptions) -> CheckPlan:
    """Return what of a recipe's data is looked at."""
    images = None if data.images is None else path_of(data, data.images)
    share = None if isinstance(data.validation, Path) else data.validation
    sources = [CheckSource("train", path_of(data, data.train), images, held_out=share)]
    if isinstance(data.validation, Path):
        sources.append(CheckSource("validation", path_of(data, data.validation), images))
    sources.append(CheckSource("test", path_of(data, data.test), images))
    return CheckPlan(tuple(sources), data.imagery, data.merge_classes)


def check(plan: CheckPlan, *, workers: int | None = None) -> Checked:
    """Look at a data set: its annotations, every image file, and all of them together.

    Args:
        plan: Which files.
        workers: Processes that decode images; by default one for each core where there are many.

    Raises:
        DataError: An annotation file is absent or is no JSON object.
    """
    findings = Findings()
    files = tuple(
        read_entries(source.path, images=source.images, split=source.split, findings=findings)
        for source in plan.sources
    )
    images = tuple(
        image
        for index, file in enumerate(files)
        for image in _looked_at(index, file, plan, workers=workers, findings=findings)
    )
    splits = _splits(plan)
    for split in splits:
        hint_at_form([(image.entry, image.size) for image in images if image.split == split], split, findings)
    classes = _classes(plan, files, findings)
    facts, of_split = [image.facts for image in images], [image.split for image in images]
    groups = tuple(tuple(group) for group in copies(facts))
    across = tuple(near_duplicates(facts, of_split, across=True))
    within = tuple(near_duplicates(facts, of_split, across=False))
    _note_likeness(images, groups, across, within, findings)
    _note_places(images, splits, findings)
    records = tuple(_split_record(split, files, plan, images, classes) for split in splits)
    for one in records:
        if not one.images:
            findings.add("split_empty", one.name, one.name)
        for name, count in one.per_class.items():
            if not count:
                findings.add("classes_absent", one.name, name)
    told = findings.all()
    record = CheckRecord(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        producer=f"ifkd {__version__}",
        sources=tuple(
            SourceRecord(split=source.split, path=str(file.path), sha256=file.sha256, images=str(file.folder))
            for source, file in zip(plan.sources, files, strict=True)
        ),
        clean=all(one.severity == "note" for one in told),
        splits=records,
        classes=classes,
        sizes=_sizes(images),
        forms=_forms(images),
        sides=tuple(side for split in splits if (side := _side(split, images)) is not None),
        findings=told,
        pairs=_pair_records(images, groups, (*across, *within)),
    )
    return Checked(files, splits, images, groups, across, within, record)


def rank(split: str) -> int:
    """Return how much hangs on a split: 0 for training, 2 for test."""
    return RANKS.get(split.casefold(), 0)


def _splits(plan: CheckPlan) -> tuple[str, ...]:
    names = []
    for source in plan.sources:
        names += [source.split] if source.held_out is None else [source.split, "validation"]
    return tuple(dict.fromkeys(names))


def _looked_at(
    index: int, file: AnnotationFile, plan: CheckPlan, *, workers: int | None, findings: Findings
) -> list[CheckedImage]:
    source = plan.sources[index]
    held_out: set[str] = set()
    if source.held_out is not None:
        held_out = held_out_places([entry.place for entry in file.images], source.held_out)
    looked_at = []
    for entry, facts in zip(file.images, inspect_files(file, plan.imagery, workers=workers), strict=True):
        split = "validation" if entry.place in held_out else source.split
        _note_file(entry, facts, split, findings)
        size = facts.size or entry.size
        verdicts = tuple(judge_boxes(entry, size, split=split, findings=findings))
        classes = tuple(_class_name(file.classes[box.category], plan) for box in entry.boxes)
        looked_at.append(CheckedImage(entry, facts, split, index, classes, verdicts))
    return looked_at


def _note_file(entry: ImageEntry, facts: FileFacts, split: str, findings: Findings) -> None:
    if facts.problem is not None:
        findings.add(facts.problem, split, facts.told)
    if facts.renamed is not None:
        findings.add("names_in_other_case", split, f"{entry.name} is {facts.renamed}")
    if facts.size is not None and entry.size is not None and facts.size != entry.size:
        (height, width), (stated_height, stated_width) = facts.size, entry.size
        findings.add(
            "sizes_differ",
            split,
            f"{entry.name}: {width}x{height} (width x height), stated {stated_width}x{stated_height}",
        )
        if facts.size == entry.size[::-1]:
            findings.suggest(
                "sizes_differ", split, "Height and width are exchanged: the file may be turned by its Exif."
            )


def _classes(plan: CheckPlan, files: Sequence[AnnotationFile], findings: Findings) -> tuple[str, ...]:
    """Return all classes by label, the first file's first, and note files that have others."""
    lists = [tuple(dict.fromkeys(_class_name(name, plan) for name in file.classes.values())) for file in files]
    for source, names in zip(plan.sources, lists, strict=True):
        if names != lists[0]:
            absent, more = set(lists[0]) - set(names), set(names) - set(lists[0])
            facts = [f"lacks {', '.join(sorted(absent))}"] if absent else []
            facts += [f"has also {', '.join(sorted(more))}"] if more else []
            told = "; ".join(facts) or "has them in another order"
            findings.add("categories_differ", source.split, f"{source.path.name} {told}")
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _class_name(name: str, plan: CheckPlan) -> str:
    """Return the class that objects of a category are counted as, as any terminal can show it."""
    return shown(plan.merge_classes.get(name, name))


def _note_likeness(
    images: Sequence[CheckedImage],
    groups: Sequence[Sequence[int]],
    across: Sequence[DuplicatePair],
    within: Sequence[DuplicatePair],
    findings: Findings,
) -> None:
    for group in groups:
        first_of: dict[str, int] = {}
        for index in sorted(group, key=lambda one: (rank(images[one].split), one)):
            split = images[index].split
            if split in first_of:
                told = f"{images[index].entry.name} and {images[first_of[split]].entry.name}"
                findings.add("images_repeated", split, told)
            elif first_of:
                other = next(iter(first_of))
                told = f"{images[first_of[other]].entry.name} and {images[index].entry.name}"
                findings.add("images_shared", f"{other} and {split}", told)
            first_of.setdefault(split, index)
    for pairs, kind in ((across, "images_alike_shared"), (within, "images_alike")):
        for pair in pairs:
            ends = sorted((pair.first, pair.second), key=lambda one: (rank(images[one].split), one))
            split = " and ".join(dict.fromkeys(images[one].split for one in ends))
            names = " and ".join(images[one].entry.name for one in ends)
            findings.add(kind, split, f"{names} ({pair.correlation:.3f})")


def _note_places(images: Sequence[CheckedImage], splits: Sequence[str], findings: Findings) -> None:
    """Note places that entries name and that several splits show."""
    shown_in: dict[str, set[str]] = {}
    for image in images:
        if "scene" in image.entry.content:
            shown_in.setdefault(image.entry.place, set()).add(image.split)
    for place, where in shown_in.items():
        if len(where) > 1:
            findings.add("places_shared", " and ".join(split for split in splits if split in where), place)


def _split_record(
    split: str,
    files: Sequence[AnnotationFile],
    plan: CheckPlan,
    images: Sequence[CheckedImage],
    classes: Sequence[str],
) -> SplitRecord:
    usable = [image for image in images if image.split == split and image.facts.problem is None]
    counts = Counter(name for image in usable for _, name in image.objects)
    listed = 0
    for source, file in zip(plan.sources, files, strict=True):
        if source.split == split and source.held_out is None:
            entries = file.content.get("images")
            listed += len(entries) if isinstance(entries, list) else 0
        elif source.held_out is not None:
            listed += sum(image.split == split and files[image.source] is file for image in images)
    return SplitRecord(
        name=split,
        listed=listed,
        images=len(usable),
        empty_images=sum(not image.objects for image in usable),
        objects=sum(counts.values()),
        ignored=sum(
            box.ignore and verdict not in DROPS_BOX
            for image in usable
            for box, verdict in zip(image.entry.boxes, image.verdicts, strict=True)
        ),
        per_class={name: counts[name] for name in classes},
    )


def _sizes(images: Sequence[CheckedImage]) -> tuple[SizeRecord, ...]:
    counts = Counter(image.facts.size for image in images if image.facts.size is not None)
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(SizeRecord(height=size[0], width=size[1], images=count) for size, count in order)


def _forms(images: Sequence[CheckedImage]) -> tuple[FormRecord, ...]:
    counts = Counter(image.facts.form for image in images if image.facts.form)
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(FormRecord(form=form, images=count) for form, count in order)


def object_sides(images: Sequence[CheckedImage], split: str) -> list[tuple[float, float]]:
    """Return width and height, pixels, of the objects of a split, as they are cut to their images."""
    sides = []
    for image in images:
        if image.split != split or image.facts.problem is not None:
            continue
        for box, _ in image.objects:
            x1, y1, x2, y2 = box.corners if image.size is None else cut(box.corners, image.size)
            sides.append((x2 - x1, y2 - y1))
    return sides


def _side(split: str, images: Sequence[CheckedImage]) -> SideRecord | None:
    roots = np.array([math.sqrt(width * height) for width, height in object_sides(images, split)])
    if not len(roots):
        return None
    low, median, high = (round(float(value), 2) for value in np.percentile(roots, [5, 50, 95]))
    small, large = float((roots < SMALL_PX).mean()), float((roots >= LARGE_PX).mean())
    return SideRecord(
        split=split,
        p05=low,
        median=median,
        p95=high,
        small=round(small, 4),
        medium=round(1.0 - small - large, 4),
        large=round(large, 4),
    )


def _pair_records(
    images: Sequence[CheckedImage], groups: Sequence[Sequence[int]], pairs: Sequence[DuplicatePair]
) -> tuple[PairRecord, ...]:
    copied = [DuplicatePair(group[0], other, 1.0) for group in groups for other in group[1:]]
    equal = len(copied)
    return tuple(
        PairRecord(
            first=shown(images[pair.first].entry.name),
            first_split=images[pair.first].split,
            second=shown(images[pair.second].entry.name),
            second_split=images[pair.second].split,
            correlation=round(pair.correlation, 4),
            copy_=index < equal,
        )
        for index, pair in enumerate((*copied, *pairs)[:PAIRS_RECORDED])
    )
