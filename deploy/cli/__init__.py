"""The `ifkd` command, one module per subcommand."""

import argparse


class Arguments(argparse.Namespace):
    """Parsed arguments of a command; each command declares its own in a subclass."""

    json: bool
    """Print the result as JSON."""
    verbose: bool
    """Log progress, and show tracebacks."""


def add_common_arguments(parser: argparse.ArgumentParser, *, subcommand: bool = False) -> None:
    """Add --json and --verbose; those of a subcommand do not reset the options given before its name."""
    default = argparse.SUPPRESS if subcommand else False
    parser.add_argument("--json", action="store_true", default=default, help="print the result as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="log progress, show tracebacks")
