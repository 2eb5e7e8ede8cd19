"""The `ifkd` command. One table names every verb; its code is imported when it is called, so help answers at once."""

import argparse
import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from ifkd import __version__
from ifkd.core.errors import IfkdError, MissingExtraError, UsageError, did_you_mean

VERBS = {
    "doctor": ("deploy.cli.doctor", "say what is installed, what will work here and what to install"),
    "data": (
        "deploy.cli.data.commands",
        "make labeled data sets (synth), bring others into COCO form (convert), check them (check), cut them (slice)",
    ),
    "train": ("deploy.cli.train", "train a recipe's teacher or student alone"),
    "distill": ("deploy.cli.distill", "train the student from the teacher"),
    "study": ("deploy.cli.study", "compare methods, switch IFKD's parts, vary its weights: seeds, tables, figures"),
    "evaluate": ("deploy.cli.evaluate", "COCO metrics of a checkpoint or a bundle on a data set"),
    "export": ("deploy.cli.export", "turn a checkpoint into a bundle, and a bundle into models for Triton"),
    "engine": ("deploy.cli.engine", "build engines from a bundle's ONNX files"),
    "detect": ("deploy.cli.detect", "find objects in a scene"),
    "bench": ("deploy.cli.bench", "measure the latency of a bundle's files"),
    "parity": ("deploy.cli.parity", "compare a bundle's files with the torch reference"),
    "report": ("deploy.cli.report", "render report.json as Markdown and HTML"),
}
"""Verb -> (module with `configure(parser)` and `run(arguments) -> dict | None`, what it does)."""

EXTRA_OF = {
    "torch": "train",
    "torchvision": "train",
    "timm": "train",
    "safetensors": "train",
    "jaxtyping": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "jinja2": "report",
    "matplotlib": "figures",
    "tritonclient": "triton",
}
"""Package -> the extra that brings it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code: 0 done, 1 a failed verdict, 2 a mistake the user can mend."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        if not words or words[0] in {"-h", "--help", "--version"}:
            parser.parse_args(words or ["--help"])
        return _run(words)
    except IfkdError as error:
        if "-v" in words or "--verbose" in words:
            logging.getLogger("ifkd").exception("The verb ended early")
        print(f"ifkd: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        missing = MissingExtraError(package, extra=EXTRA_OF[package], need=f"ifkd {words[0]}")
        print(f"ifkd: {missing}", file=sys.stderr)  # noqa: T201
        return missing.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("ifkd: interrupted; the same command goes on where it can.", file=sys.stderr)  # noqa: T201
        return 130


def _run(words: list[str]) -> int:
    verb = words[0]
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS) or "`ifkd --help` lists the verbs."
        raise UsageError(f"There is no verb {verb!r}", expected=f"one of {', '.join(VERBS)}", mend=hint)
    module_name, purpose = VERBS[verb]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(prog=f"ifkd {verb}", description=f"{purpose[0].upper()}{purpose[1:]}.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell more, and show tracebacks")
    module.configure(parser)
    options = _options(parser, words[1:])
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    result: dict[str, Any] | None = module.run(options)
    if options.json and result is not None:
        print(json.dumps(result, indent=2, ensure_ascii=False, default=str))  # noqa: T201
    return 0


def _options(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Return a verb's arguments; KEY=VALUE may stand before and after flags."""
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:  # a parser with verbs below it cannot mix
        return parser.parse_args(words)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    listing = "\n".join(f"  {verb:<{width}}  {purpose}" for verb, (_, purpose) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="ifkd",
        usage="ifkd VERB …",
        description="Distill fine-grained detectors, export them, run them on wide-swath scenes.",
        epilog=f"verbs:\n{listing}\n\n`ifkd VERB --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ifkd {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
