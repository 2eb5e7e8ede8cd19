"""Check a data set: annotation files, image files, boxes, and all splits against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from ifkd import __version__, recipe
from ifkd.data.account import printable
from ifkd.data.check.box_checks import check_boxes, check_oriented
from ifkd.data.check.box_form import suggest_box_form
from ifkd.data.check.check_record import (
    CheckRecord,
    SourceRecord,
    duplicate_records,
    image_formats,
    image_sizes,
    split_record,
)
from ifkd.data.check.duplicates import DuplicatePair, duplicate_pairs, exact_duplicates
from ifkd.data.check.finding import Findings
from ifkd.data.check.image_inspection import CheckedImage, InspectedFile, inspect_files
from ifkd.data.check.lenient_coco import AnnotationFile, ImageEntry, read_entries
from ifkd.data.label_values import text_or
from ifkd.data.splits import held_out_scenes, resolve_path
from ifkd.imagery.contrast import ImageryOptions
from ifkd.imagery.exif import UPRIGHT

SPLIT_RANKS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class CheckSource:
    """An annotation file and its split."""

    split: str
    path: Path
    images: Path | None = None
    """Image folder; by default `images` beside the file."""
    held_out: float | None = None
    """Fraction of its images, by scene, that belongs to the split `validation`."""


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """Data sets and images to check."""

    sources: tuple[CheckSource, ...]
    imagery: ImageryOptions = field(default_factory=ImageryOptions)
    merge_classes: Mapping[str, str] = field(default_factory=dict)
    """Class name -> class that its objects are counted as."""
    oriented: bool = False
    """Whether the detector is oriented, and so every object needs an oriented box."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        names = [(one.split,) if one.held_out is None else (one.split, "validation") for one in self.sources]
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def class_name(self, category: str) -> str:
        """Return the class that objects of a category are counted as, in printable characters."""
        return printable(self.merge_classes.get(category, category))


@dataclass(frozen=True, slots=True, eq=False)
class CheckedDataset:
    """A checked data set."""

    files: Sequence[AnnotationFile]
    splits: tuple[str, ...]
    images: Sequence[CheckedImage]
    exact_duplicates: Sequence[Sequence[int]]
    """Groups of images with identical pixels, as indices."""
    duplicates: Sequence[DuplicatePair]
    """Exact and near duplicates, as `duplicate_pairs` returns them."""
    record: CheckRecord


def plan_of_recipe(data: recipe.DataOptions, *, oriented: bool = False) -> CheckPlan:
    """Return the plan that checks all splits of a recipe's data, for an upright or an oriented detector."""
    images = None if data.images is None else resolve_path(data, data.images)
    held_out = None if isinstance(data.validation, Path) else data.validation
    sources = [CheckSource("train", resolve_path(data, data.train), images, held_out)]
    if isinstance(data.validation, Path):
        sources.append(CheckSource("validation", resolve_path(data, data.validation), images))
    sources.append(CheckSource("test", resolve_path(data, data.test), images))
    return CheckPlan(tuple(sources), data.imagery, data.merge_classes, oriented)


def split_rank(split: str) -> int:
    """Return 0 for training, 1 for validation, 2 for test; other splits count as training."""
    return SPLIT_RANKS.get(split.casefold(), 0)


def check(plan: CheckPlan, *, workers: int | None = None) -> CheckedDataset:
    """Check a data set; `workers` processes decode images, by default one per core where there are many.

    Raises:
        DataError: An annotation file is missing or is not a JSON object.
    """
    findings = Findings()
    files = [read_entries(one.path, images=one.images, split=one.split, findings=findings) for one in plan.sources]
    images: list[CheckedImage] = []
    for index, file in enumerate(files):
        images += _check_images(index, file, plan, workers=workers, findings=findings)
    for split in plan.splits:
        suggest_box_form([image for image in images if image.split == split], split, findings)
    classes = _compare_classes(plan, files, findings)
    inspected, split_of = [image.file for image in images], [image.split for image in images]
    groups, duplicates = exact_duplicates(inspected), duplicate_pairs(inspected, split_of)
    _add_exact_duplicates(images, groups, findings)
    _add_near_duplicates(images, duplicates, findings)
    _add_shared_scenes(images, plan.splits, findings)
    splits = tuple(split_record(split, _listed(split, plan, files, images), images, classes) for split in plan.splits)
    for one in splits:
        if not one.images:
            findings.add("split_empty", one.name, one.name)
        for name, count in one.per_class.items():
            if not count:
                findings.add("classes_without_objects", one.name, name)
    found = findings.all()
    record = CheckRecord(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        producer=f"ifkd {__version__}",
        sources=tuple(
            SourceRecord(split=source.split, path=str(file.path), sha256=file.sha256, images=str(file.folder))
            for source, file in zip(plan.sources, files, strict=True)
        ),
        clean=all(one.severity == "note" for one in found),
        splits=splits,
        classes=classes,
        image_sizes=image_sizes(images),
        image_formats=image_formats(images),
        findings=found,
        duplicates=duplicate_records(images, duplicates),
    )
    return CheckedDataset(files, plan.splits, images, groups, duplicates, record)


def _check_images(
    index: int, file: AnnotationFile, plan: CheckPlan, *, workers: int | None, findings: Findings
) -> list[CheckedImage]:
    source = plan.sources[index]
    held_out = held_out_scenes([entry.scene for entry in file.images], source.held_out or 0.0)
    checked = []
    for entry, inspected in zip(file.images, inspect_files(file, plan.imagery, workers=workers), strict=True):
        split = "validation" if entry.scene in held_out else source.split
        _add_file_findings(entry, inspected, split, findings)
        box_findings = tuple(check_boxes(entry, inspected.size or entry.size, split=split, findings=findings))
        if plan.oriented:
            check_oriented(entry, split=split, findings=findings)
        classes = tuple(plan.class_name(file.classes[box.category]) for box in entry.boxes)
        checked.append(CheckedImage(entry, inspected, split, index, classes, box_findings))
    return checked


def _add_file_findings(entry: ImageEntry, file: InspectedFile, split: str, findings: Findings) -> None:
    if file.problem is not None:
        findings.add(file.problem, split, file.message)
    if file.actual_name is not None:
        findings.add("file_names_differ", split, f"{entry.name} is {file.actual_name}")
    if file.orientation != UPRIGHT:
        example = f"{entry.name} has the Exif orientation {file.orientation}"
        findings.add("orientation_displayed", split, example)
    if file.size is not None and entry.size is not None and file.size != entry.size:
        (height, width), (stated_height, stated_width) = file.size, entry.size
        sizes = f"{width}x{height} (width x height), stated {stated_width}x{stated_height}"
        findings.add("sizes_differ", split, f"{entry.name}: {sizes}")
        if file.size == entry.size[::-1]:
            text = "Height and width are exchanged: the labels may belong to the file before it was rotated."
            findings.suggest("sizes_differ", split, text)


def _compare_classes(plan: CheckPlan, files: Sequence[AnnotationFile], findings: Findings) -> tuple[str, ...]:
    """Return all classes, the first file's first, and add files with other classes to `findings`."""
    lists = [tuple(dict.fromkeys(plan.class_name(name) for name in file.classes.values())) for file in files]
    for source, names in zip(plan.sources, lists, strict=True):
        if names != lists[0]:
            missing, more = set(lists[0]) - set(names), set(names) - set(lists[0])
            facts = [f"lacks {', '.join(sorted(missing))}"] if missing else []
            facts += [f"has also {', '.join(sorted(more))}"] if more else []
            difference = "; ".join(facts) or "has them in another order"
            findings.add("categories_differ", source.split, f"{source.path.name} {difference}")
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _add_exact_duplicates(images: Sequence[CheckedImage], groups: Sequence[Sequence[int]], findings: Findings) -> None:
    for group in groups:
        first_of: dict[str, int] = {}
        for index in sorted(group, key=lambda one: (split_rank(images[one].split), one)):
            name, split = images[index].entry.name, images[index].split
            if split in first_of:
                findings.add("images_duplicated", split, f"{name} and {images[first_of[split]].entry.name}")
            elif first_of:
                other, first = next(iter(first_of.items()))
                findings.add("images_in_two_splits", f"{other} and {split}", f"{images[first].entry.name} and {name}")
            first_of.setdefault(split, index)


def _add_near_duplicates(images: Sequence[CheckedImage], pairs: Sequence[DuplicatePair], findings: Findings) -> None:
    for pair in pairs:
        if not pair.identical:
            ends = sorted((pair.first, pair.second), key=lambda one: (split_rank(images[one].split), one))
            splits = list(dict.fromkeys(images[one].split for one in ends))
            kind = "near_duplicates_in_split" if len(splits) == 1 else "near_duplicates_across_splits"
            names = " and ".join(images[one].entry.name for one in ends)
            findings.add(kind, " and ".join(splits), f"{names} ({pair.correlation:.3f})")


def _add_shared_scenes(images: Sequence[CheckedImage], splits: Sequence[str], findings: Findings) -> None:
    """Add scenes that entries name and that are in several splits."""
    splits_of: dict[str, set[str]] = {}
    for image in images:
        if text_or(image.entry.content.get("scene"), ""):
            splits_of.setdefault(image.entry.scene, set()).add(image.split)
    for scene, found in splits_of.items():
        if len(found) > 1:
            findings.add("scenes_in_two_splits", " and ".join(split for split in splits if split in found), scene)


def _listed(split: str, plan: CheckPlan, files: Sequence[AnnotationFile], images: Sequence[CheckedImage]) -> int:
    """Return how many images the files list for a split."""
    listed = 0
    for index, (source, file) in enumerate(zip(plan.sources, files, strict=True)):
        if source.split == split and source.held_out is None:
            listed += file.count("images")
        elif source.held_out is not None:
            listed += sum(image.split == split and image.source == index for image in images)
    return listed
