"""`ifkd data check`: check a data set for mistakes, and write a fixed copy on request."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli

if TYPE_CHECKING:
    from ifkd.data.check.check import CheckPlan
    from ifkd.data.check.check_record import CheckRecord


class Arguments(cli.Arguments):
    """Arguments of `ifkd data check`."""

    sources: list[str]
    images: Path | None
    out: Path | None
    fix: Path | None
    copy_images: bool
    workers: int | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Exit code 0: no errors and no warnings; 1: errors or warnings; 2: the check could not start."
    text = "a recipe and KEY=VALUE, or COCO files, each FILE or SPLIT=FILE, as in train=a.json test=b.json"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=text)
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder (default: `images` beside each file)")
    text = "folder of check.json and check.html (default: runs/NAME/check for a recipe, else check)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a fixed copy into this new folder")
    parser.add_argument("--copy-images", action="store_true", help="copy the images into the fixed copy as well")
    text = "processes that decode images (default: one per core)"
    parser.add_argument("--workers", type=cli.worker_count, metavar="N", help=text)


def run(arguments: Arguments) -> dict[str, Any]:
    """Check the data set, write the record and the page, and print the findings.

    Raises:
        DataError: The boxes are in a form that cannot be fixed; the record and the page are written nevertheless.
        VerdictError: There are errors or warnings; all files are written nevertheless.
    """
    from ifkd.core.errors import DataError, UsageError, VerdictError
    from ifkd.core.files import require_writable
    from ifkd.data.check.check import check
    from ifkd.data.check.check_page import PAGE, RECORD, console, headline, templates, write_check
    from ifkd.data.check.fix import require_empty, write_fixed

    if arguments.copy_images and arguments.fix is None:
        raise UsageError("--copy-images needs --fix", hint="Name the folder of the fixed copy with --fix.")
    plan, folder = _plan(arguments)
    require_writable(folder / RECORD)
    templates()  # fails before the long work where jinja2 is missing
    if arguments.fix is not None:
        require_empty(arguments.fix)
    checked = check(plan, workers=arguments.workers)
    record = checked.record
    refusal = None
    if arguments.fix is not None:
        try:
            fixed = write_fixed(checked, arguments.fix, copy_images=arguments.copy_images)
            record = record.model_copy(update={"fixed": fixed})
        except DataError as error:
            refusal = error
    write_check(checked, record, folder, imagery=plan.imagery)
    if not arguments.json:
        print("\n".join([console(record), *_fixed_lines(record), str(folder / PAGE)]))  # noqa: T201
    if refusal is not None:
        raise refusal
    result = {**record.model_dump(mode="json"), "out": [str(folder / RECORD), str(folder / PAGE)]}
    if not record.clean:
        raise VerdictError(f"{headline(record).rstrip('.')}; see {folder / PAGE}", result=result)
    return result


def _plan(arguments: Arguments) -> "tuple[CheckPlan, Path]":
    """Return what to check, and the folder of the results."""
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError
    from ifkd.data.check.check import CheckPlan, CheckSource, plan_of_recipe, split_rank
    from ifkd.recipe import Recipe

    first, *rest = arguments.sources
    if Path(first).suffix.lower() == ".toml":
        if arguments.images is not None:
            raise UsageError("--images does not apply to a recipe", hint="Write data.images=DIR instead.")
        recipe = load(Path(first), Recipe, rest)
        plan = plan_of_recipe(recipe.data, oriented=recipe.student.detector.oriented)
        return plan, arguments.out or Path("runs") / recipe.name / "check"
    sources = [CheckSource(*_split_and_path(word), images=arguments.images) for word in arguments.sources]
    names = [source.split for source in sources]
    if len(set(names)) < len(names):
        hint = "Name them: train=FILE validation=FILE test=FILE."
        raise UsageError("Two files have the same split name", got=", ".join(names), hint=hint)
    plan = CheckPlan(tuple(sorted(sources, key=lambda source: split_rank(source.split))))
    return plan, arguments.out or Path("check")


def _split_and_path(word: str) -> tuple[str, Path]:
    """Return the split and the path of FILE or SPLIT=FILE; the split of FILE is its name without extension."""
    from ifkd.core.errors import UsageError

    name, equals, path = word.partition("=")
    if not equals or Path(word).exists():
        return Path(word).stem, Path(word)
    if not name or "/" in name or os.sep in name or name in {".", ".."}:
        raise UsageError(f"{name!r} is not a valid split name", expected="a word, such as train")
    return name, Path(path)


def _fixed_lines(record: "CheckRecord") -> list[str]:
    """Return a summary of the fixed copy, and the lines of a recipe that reads it."""
    fixed = record.fixed
    if fixed is None:
        return []
    lines = [f"The fixed copy is in {fixed.folder}:"]
    for split in fixed.splits:
        lines += [f"  {split.path}", *(f"    {line}" for line in split.account.lines())]
    return [*lines, f'In the recipe: root = "{fixed.folder}", images = "{fixed.images}"']
