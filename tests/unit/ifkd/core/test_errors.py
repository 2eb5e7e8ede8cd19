"""Messages, hints and exit codes of errors."""

import pickle

import pytest

from ifkd.core import errors
from ifkd.core.errors import ConfigError, DataError, IfkdError, MissingExtraError, VerdictError


def test_a_message_has_problem_values_and_hint() -> None:
    error = DataError("a.png is broken.", got="4 bytes", expected="an image", hint="Copy it again.")
    assert str(error) == "a.png is broken: got 4 bytes, expected an image. Copy it again."
    assert (error.problem, error.got, error.expected) == ("a.png is broken.", "4 bytes", "an image")


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "It is wrong."),
        ({"got": 0}, "It is wrong: got 0."),
        ({"expected": "1"}, "It is wrong: expected 1."),
        ({"hint": "Fix it."}, "It is wrong. Fix it."),
    ],
)
def test_missing_parts_are_left_out(facts: dict[str, object], line: str) -> None:
    assert str(ConfigError("It is wrong", **facts)) == line  # type: ignore[arg-type]


def test_only_verdict_error_has_exit_code_1() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IfkdError)]
    assert len(kinds) >= 11
    assert {kind.exit_code for kind in kinds if kind is not VerdictError} == {2}
    assert VerdictError.exit_code == 1
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)


def test_a_missing_extra_has_the_pip_command() -> None:
    error = MissingExtraError("jinja2", extra="report", need="The report")
    assert str(error) == (
        "The report needs the package jinja2, which is not installed. Install it with: pip install 'ifkd[report]'"
    )


def test_an_error_can_be_pickled() -> None:
    error = DataError("a.png is broken", got="4 bytes", expected="an image", hint="Copy it again.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301


def test_a_report_has_a_line_for_the_hint() -> None:
    assert DataError("a.png is broken", hint="Copy it again.").report() == (
        "error: a.png is broken.\nhint: Copy it again."
    )
    assert DataError("a.png is broken", got="4 bytes").report() == "error: a.png is broken: got 4 bytes."
