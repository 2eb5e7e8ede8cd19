"""The `ifkd` command: help, arguments of all commands, errors, results and exit codes."""

import argparse
import importlib
import inspect
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deploy.cli import Arguments, add_common_arguments
from deploy.cli import main as main_module
from deploy.cli.main import COMMANDS, EXTRA_OF, main
from ifkd import __version__
from ifkd.core.errors import DataError, VerdictError

ExpectError = Callable[..., str]
ROOT = Path(__file__).parents[4]


# --- help ---------------------------------------------------------------------------------------------------------


def test_help_lists_all_commands_and_imports_no_large_package() -> None:
    code = (
        "import sys\nfrom deploy.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "large = {'torch', 'numpy', 'pydantic', 'tqdm', 'PIL'} & set(sys.modules)\n"
        "assert not large, large\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


def test_python_dash_m_runs_the_command() -> None:
    """torchrun starts `-m ifkd`."""
    done = subprocess.run([sys.executable, "-m", "ifkd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ifkd {__version__}\n"


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "\ncommands:\n" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ifkd {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ifkd {command} ")


# --- arguments ----------------------------------------------------------------------------------------------------


def command_parser(command: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    module = importlib.import_module(f"deploy.cli.{command}")
    parser = argparse.ArgumentParser(prog=command, allow_abbrev=False)
    add_common_arguments(parser)
    module.configure(parser)
    return module, parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: subparser for action in actions for name, subparser in action.choices.items()}


def destinations(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help"}


def declared(arguments: type[Arguments]) -> set[str]:
    """Return the names of the annotated attributes of a class and of its base classes."""
    return {name for base in arguments.__mro__ for name in inspect.get_annotations(base)}


def arguments_of_subcommand(command: str, module: ModuleType, name: str) -> type[Arguments]:
    if hasattr(module, "COMMAND_ARGUMENTS"):
        found: type[Arguments] = module.COMMAND_ARGUMENTS[name]
    else:
        found = importlib.import_module(f"deploy.cli.{command}.{name}").Arguments
    return found


def parsers_with_arguments() -> Iterator[tuple[str, argparse.ArgumentParser, type[Arguments], set[str]]]:
    """Yield each parser without subcommands, with its name, its class of arguments and the parent's destinations."""
    for command in COMMANDS:
        module, parser = command_parser(command)
        children = subparsers(parser)
        if not children:
            yield command, parser, module.Arguments, set()
        for name, child in children.items():
            yield f"{command} {name}", child, arguments_of_subcommand(command, module, name), destinations(parser)


@pytest.mark.parametrize(
    ("parser", "arguments", "inherited"), [pytest.param(*rest, id=name) for name, *rest in parsers_with_arguments()]
)
def test_declared_arguments_are_those_of_the_parser(
    parser: argparse.ArgumentParser, arguments: type[Arguments], inherited: set[str]
) -> None:
    names, parsed = declared(arguments), destinations(parser)
    assert issubclass(arguments, Arguments)
    assert names >= parsed, f"undeclared: {names ^ parsed}"
    assert names - parsed <= inherited, f"not in the parser: {names - parsed - inherited}"


@pytest.mark.parametrize("parser", [pytest.param(parser, id=name) for name, parser, *_ in parsers_with_arguments()])
def test_abbreviated_options_are_refused(parser: argparse.ArgumentParser) -> None:
    assert not parser.allow_abbrev


def test_common_options_are_valid_before_and_after_a_subcommand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("deploy.cli.study")
    monkeypatch.setattr(module, "run", lambda arguments: {"verbose": arguments.verbose})
    for argv in (["--json", "-v", "figures", "x"], ["figures", "x", "--json", "-v"], ["-v", "figures", "x", "--json"]):
        assert main(["study", *argv]) == 0
        assert json.loads(capsys.readouterr().out) == {"verbose": True}


@pytest.mark.parametrize("value", ["-9999", "-3.4e38", "-3.4028234663852886E+38", "-1.", "-.5", "-inf", "-nan"])
def test_a_negative_number_is_a_value(value: str) -> None:
    from deploy.cli import detect

    parser = main_module._CommandParser(allow_abbrev=False)
    detect.configure(parser)
    arguments = parser.parse_args(["bundle", "a.tif", "--out", "o", "--nodata", value, "--scale-range", value, "1"])
    assert str(arguments.nodata) == str(float(value))
    assert str(arguments.scale_range[0]) == str(float(value))


def test_an_unknown_option_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--roll", "--rol"):
        assert main(["train", "a.toml", option, "student"]) == 2
        message, hint = capsys.readouterr().err.splitlines()
        assert message.startswith("error: ")
        assert option in message
        assert hint == "hint: Run `ifkd train --help` for the options."


# --- results and errors -------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], None]:
    """The function that replaces `ifkd doctor` by a function without arguments."""

    def replace(run: Callable[[Any], Any]) -> None:
        module = SimpleNamespace(configure=lambda _: None, run=run, Arguments=Arguments)
        monkeypatch.setattr(main_module.importlib, "import_module", lambda _: module)

    return replace


def raising(error: BaseException) -> Callable[[Any], Any]:
    def run(_: Any) -> None:
        raise error

    return run


def test_a_result_is_printed_as_json_only_on_request(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(lambda _: {"path": Path("a"), "name": "Ærø"})
    assert main(["doctor", "--json"]) == 0
    output = capsys.readouterr().out
    assert json.loads(output) == {"path": "a", "name": "Ærø"}
    assert "Ærø" in output
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == ""


def test_a_failed_verdict_exits_with_one_and_prints_its_result(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    error = VerdictError("mAP differs", got=0.2, expected="at most 0.1", hint="Export again.", result={"map": 0.2})
    command(raising(error))
    assert main(["doctor", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"map": 0.2}
    assert captured.err == "error: mAP differs: got 0.2, expected at most 0.1.\nhint: Export again.\n"


def test_an_error_of_the_user_exits_with_two(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    command(raising(DataError("a.png is broken")))
    assert main(["doctor", "--json"]) == 2
    assert capsys.readouterr() == ("", "error: a.png is broken.\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_terminal_may_lack_characters(encoding: str) -> None:
    code = (
        "import sys\nfrom deploy.cli import Arguments, main\n"
        "from types import SimpleNamespace\n"
        "def run(_):\n    print('\u6d77 \u2026')\n    return {'name': '\u6d77'}\n"
        "module = SimpleNamespace(configure=lambda _: None, run=run, Arguments=Arguments)\n"
        "main.importlib.import_module = lambda _: module\n"
        "sys.exit(main.main(['doctor', '--json']))\n"
    )
    variables = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=variables)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert json.loads(text.partition("\n")[2]) == {"name": "海"}
    assert text.startswith("海 …" if encoding == "utf-8" else r"\u6d77 \u2026")
    helped = subprocess.run([sys.executable, "-m", "ifkd", "--help"], capture_output=True, check=False, env=variables)
    assert helped.returncode == 0


def test_a_name_that_is_not_utf_8_exits_with_two(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"hafen_\xfc.tif")
    assert main(["train", name]) == 2
    assert (
        capsys.readouterr().err == r"error: A file name is not UTF-8: got b'hafen_\xfc.tif'."
        "\nhint: Rename the file.\n"
    )
    command(lambda _: name.encode())
    assert main(["doctor"]) == 2
    assert r"got b'hafen_\xfc.tif'" in capsys.readouterr().err
    command(lambda _: "ü".encode("ascii"))
    with pytest.raises(UnicodeEncodeError):
        main(["doctor"])


def test_a_locale_that_is_not_utf_8_is_named_where_it_matters(tmp_path: Path) -> None:
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    run = partial(subprocess.run, capture_output=True, check=False, env=variables, encoding="utf-8")
    done = run([sys.executable, "-m", "ifkd", "train", str(tmp_path / "häfen.toml")])
    assert done.returncode == 2
    assert "Names are UTF-8, but the locale is not: set LC_ALL=C.UTF-8" in done.stderr


def test_a_bug_ends_in_a_traceback(command: Callable[..., None]) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_an_interrupted_command_exits_with_130(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(KeyboardInterrupt()))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"


def test_a_missing_package_of_an_extra_is_named(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(ModuleNotFoundError("No module named 'onnxscript.ir'", name="onnxscript.ir")))
    assert main(["doctor"]) == 2
    assert "needs the package onnxscript" in (message := capsys.readouterr().err)
    assert "hint: Install it with: pip install 'ifkd[export]'" in message
    command(raising(ModuleNotFoundError("No module named 'ifkd.absent'", name="ifkd.absent")))
    with pytest.raises(ModuleNotFoundError):
        main(["doctor"])


def test_packages_belong_to_the_extras_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    distributions = packages_distributions()
    for package, extra in EXTRA_OF.items():
        names = {name.lower() for name in distributions.get(package, [])} | {package.replace("_", "-")}
        assert any(requirement.lower().startswith(tuple(names)) for requirement in extras[extra]), (package, extra)


def test_an_unknown_command_is_refused_with_the_most_similar_one(expect_error: ExpectError) -> None:
    message = expect_error("trian", "a.toml")
    assert message.startswith("error: There is no command 'trian': expected one of doctor, ")
    assert "\nhint: Did you mean 'train'?" in message
    assert "\nhint: `ifkd --help` lists the commands." in expect_error("xyzzy")


def test_verbose_shows_the_traceback(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert main(["train", str(tmp_path / "absent.toml")]) == 2
    assert not caplog.records
    assert main(["train", str(tmp_path / "absent.toml"), "-v"]) == 2
    (record,) = caplog.records
    assert record.exc_info is not None


def test_progress_is_logged_only_with_verbose(command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: levels.append(options["level"]))
    command(lambda _: None)
    assert main(["doctor"]) == main(["doctor", "-v"]) == 0
    assert levels == [logging.WARNING, logging.INFO]
