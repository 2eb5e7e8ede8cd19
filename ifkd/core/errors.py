"""The errors a user can cause, and the exit code each ends in.

    IfkdError               2
    ├── UsageError          a verb, flag or argument that does not exist or does not fit
    ├── ConfigError         a recipe, with all its mistakes at once
    ├── DataError           images and annotations
    ├── CheckpointError     weights
    ├── TrainingError       a run that cannot go on
    ├── BundleError         an artifact folder, its manifest or one of its files
    ├── EngineError         a runtime, a builder or an engine file
    ├── SceneError          a raster
    ├── OutputError         a place that cannot be written
    ├── MissingExtraError   a package of an optional extra
    └── VerdictError        1: the work was done, and its result failed a stated gate

Everything else is a defect of ours and ends in a traceback.
"""

import difflib
from collections.abc import Iterable


class IfkdError(Exception):
    """Something a user can cause and mend.

    Args:
        problem: What is wrong, naming the file or setting.
        got: The value received.
        expected: What would have been right.
        mend: What to do about it, as a sentence.
    """

    exit_code = 2

    def __init__(self, problem: str, *, got: object = None, expected: object = None, mend: str | None = None) -> None:
        self.problem = problem
        self.got = got
        self.expected = expected
        self.mend = mend
        super().__init__(self._line())

    def _line(self) -> str:
        line = self.problem.rstrip(".")
        facts = [f"got {self.got}"] if self.got is not None else []
        facts += [f"expected {self.expected}"] if self.expected is not None else []
        if facts:
            line += ": " + ", ".join(facts)
        return f"{line}. {self.mend}" if self.mend else f"{line}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known word nearest to a mistaken one, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


class UsageError(IfkdError):
    """A verb, flag or argument that does not exist or does not fit."""


class ConfigError(IfkdError):
    """A recipe with mistakes; the message lists all of them."""


class DataError(IfkdError):
    """An image or an annotation that cannot be used."""


class CheckpointError(IfkdError):
    """Weights that are absent, damaged or of another network."""


class TrainingError(IfkdError):
    """A training run that cannot go on: a useless teacher, a loss that is not finite."""


class BundleError(IfkdError):
    """An artifact folder whose manifest or files do not hold."""


class EngineError(IfkdError):
    """A runtime, builder or engine that is absent, unfit or was asked wrongly."""


class SceneError(IfkdError):
    """A raster that cannot be read."""


class OutputError(IfkdError):
    """A place that cannot be written, or that holds something else."""


class MissingExtraError(IfkdError):
    """A package that belongs to an optional extra and is not installed."""

    def __init__(self, package: str, *, extra: str, need: str) -> None:
        super().__init__(
            f"{need} needs the package {package}, which is not installed",
            mend=f"Install it with: pip install 'ifkd[{extra}]'",
        )


class VerdictError(IfkdError):
    """The work was done and its result is below a stated gate."""

    exit_code = 1
