"""The `ifkd` command, one module per subcommand."""

import argparse
import math
from typing import Literal

ALPHA_HELP = "band that is 0 where there are no data, or `none` (default: the file's, if its values are a mask)"
MAX_WORKERS = 256


class Arguments(argparse.Namespace):
    """Parsed arguments of a command; each command declares its own in a subclass."""

    json: bool
    """Print the result as JSON."""
    verbose: bool
    """Log progress, and show tracebacks."""


def alpha_band(text: str) -> int | Literal["none"]:
    """Return the value of --alpha."""
    if text == "none":
        return "none"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a band number, from 1, nor `none`")
    return int(text)


def add_common_arguments(parser: argparse.ArgumentParser, *, subcommand: bool = False) -> None:
    """Add --json and --verbose; those of a subcommand do not reset the options given before its name."""
    default = argparse.SUPPRESS if subcommand else False
    parser.add_argument("--json", action="store_true", default=default, help="print the result as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="log progress, show tracebacks")


def positive_int(text: str) -> int:
    """Return an option's value that counts something, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def positive_float(text: str) -> float:
    """Return an option's value that measures something, above 0 and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def worker_count(text: str) -> int:
    """Return a number of processes."""
    if positive_int(text) > MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_WORKERS}, got {text}")
    return int(text)
