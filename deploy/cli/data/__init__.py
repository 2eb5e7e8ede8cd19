"""`ifkd data`: make labeled data sets and scenes, bring those of others into COCO form, check and cut them."""

import argparse
from pathlib import Path
from typing import Any

from deploy.cli.data import check as check_command
from deploy.cli.data import slice as slice_command


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verbs and their arguments."""
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    synth = verbs.add_parser(
        "synth",
        help="make a procedural data set of ships, or of aircraft seen by radar: labeled tiles and wide-swath scenes",
        description="Make a procedural data set of ships, or of aircraft seen by radar: labeled tiles and scenes.",
    )
    synth.add_argument("config", type=Path, help="TOML file, for example configs/demo_data.toml")
    synth.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings laid over the file, for example seed=3"
    )
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data set")
    synth.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    synth.add_argument("--force", action="store_true", help="replace a data set of another configuration")
    other = verbs.add_parser(
        "convert",
        help="turn a data set of another form into one COCO file",
        description="Turn a data set of another form into one COCO file; images stay where they are.",
    )
    other.add_argument("form", choices=("coco", "voc", "yolo", "dota", "shiprsimagenet", "sar-aircraft"))
    other.add_argument("source", type=Path, help="the data set's folder, or its COCO json")
    other.add_argument("--out", type=Path, required=True, metavar="FILE", help="the COCO file to write")
    other.add_argument("--split", metavar="NAME", help="which of its splits, such as trainval (default: all)")
    other.add_argument("--class-level", type=int, choices=range(4), default=3, help="of ShipRSImageNet's class tree")
    other.add_argument("--classes", type=Path, metavar="FILE", help="class names by label, one a line")
    slice_command.configure(
        verbs.add_parser(
            "slice",
            help="cut large images into tiles for training",
            description="Cut large labeled images into tiles for training, with the map back to their source.",
        )
    )
    check = verbs.add_parser("check", help=check_command.PURPOSE, description=check_command.DESCRIPTION)
    check_command.configure(check)
    for one in verbs.choices.values():  # so that they may stand after the sub-verb as well
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the result as JSON")
        one.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="tell more")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the sub-verb says."""
    sub_verbs = {"synth": _synth, "convert": _convert, "check": check_command.run, "slice": slice_command.run}
    return sub_verbs[options.data_verb](options)


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    """Write the COCO file, say what it holds and where it lies."""
    from ifkd.data.readers.convert import convert

    done = convert(
        options.form,
        options.source,
        options.out,
        split=options.split,
        level=options.class_level,
        classes=options.classes,
    )
    if not options.json:
        images = "1 image" if done.image_count == 1 else f"{done.image_count} images"
        print(f"{done.path}: {images}, {sum(done.counts.values())} objects, {done.ignored} ignored")  # noqa: T201
        for name, count in done.counts.items():
            print(f"  {name}: {count}")  # noqa: T201
        for note in done.notes:
            print(note)  # noqa: T201
        print(f'In the recipe: images = "{done.images}"')  # noqa: T201
    return {
        "file": str(done.path),
        "image_folder": str(done.images),
        "images": done.image_count,
        "objects": done.counts,
        "ignored": done.ignored,
        "notes": list(done.notes),
    }


def _synth(options: argparse.Namespace) -> dict[str, Any]:
    """Make the data set, say what it holds and where it lies."""
    from ifkd.data.synthetic.dataset import make_dataset
    from ifkd.data.synthetic.painters import load_synthetic

    wanted = load_synthetic(options.config, options.overrides)
    record = make_dataset(wanted, options.out, workers=options.workers, force=options.force)
    result = {"folder": str(options.out), "made": record["made"], "contents": record["contents"]}
    if not options.json:
        _print(result)
    return result


def _print(result: dict[str, Any]) -> None:
    for name, part in result["contents"].items():
        objects = part["objects"]
        images = "1 image" if part["images"] == 1 else f"{part['images']} images"
        listing = ", ".join(f"{count} {kind}" for kind, count in objects.items())
        print(f"{name}: {images}, {sum(objects.values())} objects ({listing})")  # noqa: T201
    state = "made" if result["made"] else "was complete already"
    print(f"{result['folder']} {state}")  # noqa: T201
