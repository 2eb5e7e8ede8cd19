"""Errors that a user can cause, with the exit code of each.

    IfkdError               2
    ├── UsageError          an unknown or invalid command, option or argument
    ├── ConfigError         an invalid recipe; the message lists all mistakes
    ├── DataError           images and annotations
    ├── CheckpointError     weights
    ├── TrainingError       a training run that cannot continue
    ├── BundleError         a bundle, its manifest or one of its files
    ├── EngineError         a runtime, a builder or an engine file
    ├── SceneError          a raster
    ├── OutputError         a path that cannot be written
    ├── MissingExtraError   a package of an optional extra
    └── VerdictError        1: the command finished, and its result fails a stated limit

Any other exception is a bug and ends in a traceback.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class IfkdError(Exception):
    """An error that a user can cause and fix: the problem, the value received, the valid ones, and a hint."""

    exit_code = 2

    def __init__(self, problem: str, *, got: object = None, expected: object = None, hint: str | None = None) -> None:
        self.problem, self.got, self.expected, self.hint = problem, got, expected, hint
        super().__init__(f"{self.sentence()} {hint}" if hint else self.sentence())

    def report(self) -> str:
        """Return the message for a terminal: a line `error: …`, and a line `hint: …` where there is a hint."""
        return f"error: {self.sentence()}" + (f"\nhint: {self.hint}" if self.hint else "")

    def sentence(self) -> str:
        """Return the problem with the value received and the valid values, without the hint."""
        facts = [f"got {self.got}"] if self.got is not None else []
        facts += [f"expected {self.expected}"] if self.expected is not None else []
        problem = self.problem.rstrip(".")
        return f"{problem}: {', '.join(facts)}." if facts else f"{problem}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question "Did you mean …?" with the known word most similar to `word`; empty where none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


class UsageError(IfkdError):
    """An unknown or invalid command, option or argument."""


class ConfigError(IfkdError):
    """An invalid recipe; the message lists all mistakes."""


class DataError(IfkdError):
    """An invalid image or annotation."""


class CheckpointError(IfkdError):
    """Weights that are missing, damaged or of another network."""


class TrainingError(IfkdError):
    """A training run that cannot continue: a teacher below the minimum mAP, or a loss that is not finite."""


class BundleError(IfkdError):
    """A bundle whose manifest or files are invalid."""


class EngineError(IfkdError):
    """A missing or incompatible runtime, builder or engine, or invalid input for one."""


class SceneError(IfkdError):
    """A raster that cannot be read."""


class OutputError(IfkdError):
    """A path that cannot be written, or that contains other files."""


class MissingExtraError(IfkdError):
    """A missing package of an optional extra."""

    def __init__(self, package: str, *, extra: str | tuple[str, ...], need: str) -> None:
        """Name the extra that installs the package, or several of which one fits the driver."""
        extras = (extra,) if isinstance(extra, str) else extra
        names = " or ".join(f"'ifkd[{one}]'" for one in extras)
        which = ". `ifkd doctor` states which of them fits the driver." if len(extras) > 1 else ""
        hint = f"Install it with: pip install {names}{which}"
        super().__init__(f"{need} needs the package {package}, which is not installed", hint=hint)


class VerdictError(IfkdError):
    """A finished command whose result fails a stated limit; `--json` prints the `result` all the same."""

    exit_code = 1

    def __init__(self, problem: str, *, result: dict[str, Any] | None = None, **facts: Any) -> None:
        self.result = result
        super().__init__(problem, **facts)
