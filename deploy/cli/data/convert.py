"""`ifkd data convert`: convert a data set of another format to one COCO file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli

if TYPE_CHECKING:
    from ifkd.data.readers.convert import SourceFormat

FORMATS = ("coco", "voc", "yolo", "dota", "shiprsimagenet", "sar-aircraft")


class Arguments(cli.Arguments):
    """Arguments of `ifkd data convert`."""

    format: "SourceFormat"
    source: Path
    out: Path
    split: str | None
    class_level: int
    classes: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Exit code 0: all images and objects were written; 1: some were left out; 2: nothing was written."
    add = parser.add_argument
    add("format", choices=FORMATS, help="format of the data set")
    add("source", type=Path, help="folder of the data set, its data.yaml, or its COCO file")
    add("--out", type=Path, required=True, metavar="FILE", help="COCO file to write; images stay in place")
    add("--split", metavar="NAME", help="one of its splits, for example trainval (default: all)")
    text = "level of ShipRSImageNet's class tree (default: 3)"
    add("--class-level", type=int, choices=range(4), default=3, help=text)
    add("--classes", type=Path, metavar="FILE", help="class names by label, one a line")


def run(arguments: Arguments) -> dict[str, Any]:
    """Write the COCO file, and print a summary.

    Raises:
        UsageError: The file to write is the source.
        VerdictError: Images or objects were left out; the file is written nevertheless.
    """
    from ifkd.core.errors import UsageError, VerdictError
    from ifkd.core.files import require_writable
    from ifkd.data.readers.convert import convert

    if arguments.out.resolve() == arguments.source.resolve():
        raise UsageError(f"--out {arguments.out} is the source itself", hint="Choose another file.")
    require_writable(arguments.out)
    done = convert(
        arguments.format,
        arguments.source,
        arguments.out,
        split=arguments.split,
        class_level=arguments.class_level,
        classes=arguments.classes,
    )
    if not arguments.json:
        images = "1 image" if done.images == 1 else f"{done.images} images"
        lines = [f"{done.file}: {images}, {sum(done.objects.values())} objects, {done.ignored} ignored"]
        lines += [f"  {name}: {count}" for name, count in done.objects.items()]
        lines += [*done.account.lines(), *done.notes, f'In the recipe: images = "{done.image_folder}"']
        print("\n".join(lines))  # noqa: T201
    result = done.model_dump(mode="json")
    left_out = done.account.images.left_out, done.account.objects.left_out
    if any(left_out):
        parts = zip(left_out, ("image", "object"), strict=True)
        counts = " and ".join(f"{count} {name}{'s' if count != 1 else ''}" for count, name in parts)
        raise VerdictError(f"{counts} were left out of {done.file}", result=result)
    return result
