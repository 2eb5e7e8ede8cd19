"""`ifkd data`: make labelled data sets and scenes."""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verbs and their arguments."""
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    synth = verbs.add_parser(
        "synth",
        help="make a procedural data set of ships: labelled tiles and wide-swath scenes",
        description="Make a procedural data set of ships: labelled tiles and wide-swath scenes.",
    )
    synth.add_argument("config", type=Path, help="TOML file, for example configs/demo_data.toml")
    synth.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings laid over the file, for example seed=3"
    )
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data set")
    synth.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    synth.add_argument("--force", action="store_true", help="replace a data set of another configuration")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the data set, say what it holds and where it lies."""
    from ifkd import config
    from ifkd.data.synthetic.config import Synthetic
    from ifkd.data.synthetic.dataset import make_dataset

    wanted = config.load(options.config, Synthetic, options.overrides)
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
        print(f"{name}: {images}, {sum(objects.values())} ships ({listing})")  # noqa: T201
    state = "made" if result["made"] else "was complete already"
    print(f"{result['folder']} {state}")  # noqa: T201
