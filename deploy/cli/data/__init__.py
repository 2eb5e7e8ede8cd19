"""`ifkd data`: generate, convert, check and tile labeled data sets."""

import argparse
import importlib
from typing import Any

from deploy import cli

COMMANDS = {
    "synth": "generate a procedural data set of ships in optical images, or of aircraft in SAR images",
    "convert": "convert a data set of another format to one COCO file",
    "check": "check a data set for mistakes, and write a fixed copy on request",
    "slice": "cut large labeled images into tiles for training",
}
"""Subcommand -> what it does. Its module has `configure(parser)`, `run(arguments)` and `Arguments`."""


class Arguments(cli.Arguments):
    """Arguments of `ifkd data`, those of the subcommand included."""

    data_command: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their arguments."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        description = f"{purpose[0].upper()}{purpose[1:]}."
        command = commands.add_parser(name, help=purpose, description=description, allow_abbrev=False)
        _module(name).configure(command)
        cli.add_common_arguments(command, subcommand=True)


def run(arguments: Arguments) -> dict[str, Any]:
    """Run the subcommand, and return its result."""
    module = _module(arguments.data_command)
    return module.run(module.Arguments(**vars(arguments)))


def _module(command: str) -> Any:
    return importlib.import_module(f"deploy.cli.data.{command}")
