"""`ifkd data synth`: generate a procedural data set of labeled tiles and wide-swath scenes."""

import argparse
from pathlib import Path
from typing import Any

from deploy import cli


class Arguments(cli.Arguments):
    """Arguments of `ifkd data synth`."""

    config: Path
    overrides: list[str]
    out: Path
    workers: int | None
    force: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", type=Path, help="TOML file, for example configs/demo_data.toml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a setting, for example seed=3")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--workers", type=cli.worker_count, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--force", action="store_true", help="replace a data set with other settings")


def run(arguments: Arguments) -> dict[str, Any]:
    """Generate the data set, and print its contents."""
    from ifkd.data.synthetic.dataset import make_dataset
    from ifkd.data.synthetic.painters import load_synthetic

    config = load_synthetic(arguments.config, arguments.overrides)
    record = make_dataset(config, arguments.out, workers=arguments.workers, force=arguments.force)
    result = {"folder": str(arguments.out), "made": record["made"], "contents": record["contents"]}
    if not arguments.json:
        for name, part in record["contents"].items():
            images = "1 image" if part["images"] == 1 else f"{part['images']} images"
            counts = ", ".join(f"{count} {kind}" for kind, count in part["objects"].items())
            print(f"{name}: {images}, {sum(part['objects'].values())} objects ({counts})")  # noqa: T201
        print(f"{arguments.out} {'made' if record['made'] else 'was complete already'}")  # noqa: T201
    return result
