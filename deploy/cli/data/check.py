"""`ifkd data check`: say what a data set holds, what is wrong with it and how to mend it."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ifkd.data.check.check import CheckPlan
    from ifkd.data.check.check_record import CheckRecord

PURPOSE = "say what a data set holds, what is wrong with it and how to mend it"
DESCRIPTION = f"""{PURPOSE[0].upper()}{PURPOSE[1:]}.
Exit code 0: nothing but notes; 1: something was found; 2: the check could not begin."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a recipe and KEY=VALUE, or COCO files, each FILE or SPLIT=FILE, as in train=a.json test=b.json",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (`images` beside each file)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="for check.json and check.html (runs/NAME/check, or check)"
    )
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a cleaned copy into this folder")
    parser.add_argument("--copy-images", action="store_true", help="copy the images as well; else they stay in place")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that decode images (one for each core)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Check, write the record and the page, and print what was found.

    Raises:
        VerdictError: Errors or warnings were found; everything is written all the same.
    """
    from ifkd.core.errors import UsageError, VerdictError
    from ifkd.data.check.check import check
    from ifkd.data.check.check_page import PAGE, RECORD, console, headline, templates, write_check
    from ifkd.data.check.fix import require_free, write_cleaned

    if options.copy_images and options.fix is None:
        raise UsageError("--copy-images belongs to a cleaned copy", hint="Name its folder with --fix.")
    plan, folder = _plan(options)
    templates()
    if options.fix is not None:
        require_free(options.fix)
    checked = check(plan, workers=options.workers)
    record = checked.record
    if options.fix is not None:
        names = [source.split for source in plan.sources]
        cleaned = write_cleaned(checked, options.fix, names=names, copy_images=options.copy_images)
        record = record.model_copy(update={"cleaned": cleaned})
    write_check(checked, record, folder, imagery=plan.imagery)
    result = {**record.model_dump(mode="json"), "out": [str(folder / RECORD), str(folder / PAGE)]}
    if not options.json:
        print(console(record))  # noqa: T201
        for line in _cleaned_lines(record):
            print(line)  # noqa: T201
        print(folder / PAGE)  # noqa: T201
    if not record.clean:
        raise VerdictError(f"{headline(record).rstrip('.')}, told in {folder / PAGE}", result=result)
    return result


def _plan(options: argparse.Namespace) -> "tuple[CheckPlan, Path]":
    """Return what is to be checked, and the folder of the results."""
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError
    from ifkd.data.check.check import CheckPlan, CheckSource, check_plan, rank
    from ifkd.recipe import Recipe

    first, *rest = options.sources
    if Path(first).suffix.lower() == ".toml":
        if options.images is not None:
            raise UsageError("A recipe names the folder of its images", hint="Write data.images=DIR instead.")
        recipe = load(Path(first), Recipe, rest)
        return check_plan(recipe.data), options.out or Path("runs") / recipe.name / "check"
    sources = [CheckSource(*_named(word), images=options.images) for word in options.sources]
    names = [source.split for source in sources]
    if len(set(names)) < len(names):
        raise UsageError(
            "Two files are one split", got=", ".join(names), hint="Name them: train=FILE validation=FILE test=FILE."
        )
    return CheckPlan(tuple(sorted(sources, key=lambda source: rank(source.split)))), options.out or Path("check")


def _named(word: str) -> tuple[str, Path]:
    """Return the split and the path that FILE or SPLIT=FILE says."""
    from ifkd.core.errors import UsageError

    name, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return Path(word).stem, Path(word)
    if not name or "/" in name or os.sep in name or name in {".", ".."}:
        raise UsageError(f"{name!r} is no name of a split", expected="a word, such as train")
    return name, Path(path)


def _cleaned_lines(record: "CheckRecord") -> "Sequence[str]":
    """Return what the cleaned copy holds, and the lines of a recipe that reads it."""
    cleaned = record.cleaned
    if cleaned is None:
        return ()
    lines = [f"The cleaned copy is in {cleaned.folder}:"]
    for split in cleaned.splits:
        images, boxes = sum(split.images_left_out.values()), sum(split.boxes_left_out.values())
        lines.append(
            f"  {split.path}: {split.images} images, {split.objects} boxes; left out {images} images "
            f"and {boxes} boxes of others, {split.boxes_cut} boxes cut"
        )
    return [*lines, f'In the recipe: root = "{cleaned.folder}", images = "{cleaned.images}"']
