"""Arguments that all commands share."""

import argparse


class Arguments(argparse.Namespace):
    """Parsed arguments of a command; each command declares its own in a subclass."""

    json: bool
    """Whether to print the result as JSON."""
    verbose: bool
    """Whether to log progress and show tracebacks."""
