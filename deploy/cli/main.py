"""The `ifkd` command: a table of subcommands, each imported when it runs, so that `--help` is fast."""

import argparse
import importlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from deploy.cli import Arguments, add_common_arguments
from ifkd import __version__
from ifkd.core.errors import IfkdError, MissingExtraError, UsageError, VerdictError, did_you_mean
from ifkd.core.files import require_unicode

COMMANDS = {
    "doctor": "report what is installed, what works on this machine and what to install",
    "data": "generate (synth), convert to COCO (convert), check (check) and tile (slice) labeled data sets",
    "train": "train a recipe's teacher or student alone",
    "distill": "train the student from the teacher",
    "study": "compare methods, ablate IFKD, sweep its weights; over seeds, with tables and figures",
    "evaluate": "compute COCO metrics of a checkpoint, a bundle or the detections of a scene",
    "export": "convert a checkpoint to a bundle, and a bundle to a Triton model repository",
    "verify": "check that a bundle is complete and unchanged, and that its parity was computed from its files",
    "engine": "build engines from a bundle's ONNX files",
    "detect": "detect objects in scenes",
    "bench": "measure the latency of a bundle's files",
    "parity": "compare a bundle's files with the torch reference",
    "report": "render report.json as Markdown and HTML, or compare several reports",
}
"""Command -> its purpose. The module `deploy.cli.<command>` has `configure(parser)`, `run(arguments)`, `Arguments`."""

EXTRAS = {
    "train": ("torch", "torchvision", "timm", "safetensors", "segment_anything", "tensorboard", "jaxtyping"),
    "export": ("onnx", "onnxscript"),
    "cpu": ("onnxruntime",),
    "report": ("jinja2",),
    "figures": ("matplotlib",),
    "triton": ("tritonclient",),
    "ray": ("ray", "fsspec"),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}
"""Import name of a package -> the extra that installs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, without the program's name; by default that of this process.

    Returns:
        The exit code: 0 done; 1 the result fails a stated limit; 2 an error that the user can fix; 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters
    try:
        for word in argv:
            require_unicode(word, UsageError)
        if not argv or argv[0] in {"-h", "--help", "--version"}:
            _parser().parse_args(argv or ["--help"])
        return _run(argv[0], argv[1:])
    except IfkdError as error:
        return _fail(error, verbose="-v" in argv or "--verbose" in argv)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        return _fail(MissingExtraError(package, extra=EXTRA_OF[package], need=f"ifkd {argv[0]}"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to resume.", file=sys.stderr)  # noqa: T201
        return 130


def _run(command: str, argv: list[str]) -> int:
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or "`ifkd --help` lists the commands."
        raise UsageError(f"There is no command {command!r}", expected=f"one of {', '.join(COMMANDS)}", hint=hint)
    module = importlib.import_module(f"deploy.cli.{command}")
    description = f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}."
    parser = _CommandParser(prog=f"ifkd {command}", description=description, allow_abbrev=False)
    add_common_arguments(parser)
    module.configure(parser)
    arguments = parser.parse_args(argv, module.Arguments())
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        _print_json(module.run(arguments), arguments)
    except VerdictError as error:
        _print_json(error.result, arguments)
        raise
    except UnicodeEncodeError as error:
        require_unicode(error.object, UsageError)
        if sys.getfilesystemencoding() == "utf-8":
            raise
        problem, got = f"The encoding {error.encoding} of the locale lacks a character", ascii(error.object)
        raise UsageError(problem, got=got, hint="Set LC_ALL=C.UTF-8.") from error
    return 0


class _CommandParser(argparse.ArgumentParser):
    """Parser that reports an invalid command line as all other errors are reported.

    KEY=VALUE may stand before and after options, also those of a subcommand.
    """

    _intermixes = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # -3.4e38, -inf and -1. are values too; argparse itself knows -3 and -3.4 only.
        self._negative_number_matcher = re.compile(
            r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|-(inf|infinity|nan)$", re.IGNORECASE
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is not None or self._intermixes:
            return super().parse_known_args(args, namespace)
        self._intermixes = True  # argparse calls this method again, for options and for other arguments
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixes = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"Run `{self.prog} --help` for the options.")


def _print_json(result: dict[str, Any] | None, arguments: Arguments) -> None:
    if arguments.json and result is not None:
        ascii_only = (sys.stdout.encoding or "").lower() != "utf-8"
        print(json.dumps(result, indent=2, ensure_ascii=ascii_only, default=str))  # noqa: T201


def _fail(error: IfkdError, *, verbose: bool = False) -> int:
    if verbose:
        logging.getLogger("ifkd").error("Traceback of the error below", exc_info=error)
    print(error.report(), file=sys.stderr)  # noqa: T201
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {command:<{width}}  {purpose}" for command, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ifkd",
        usage="ifkd COMMAND …",
        description="Distill fine-grained detectors, export them, run them on wide-swath scenes.",
        epilog=f"commands:\n{listing}\n\nRun `ifkd COMMAND --help` for its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ifkd {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
