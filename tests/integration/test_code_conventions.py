"""Check the rules of CONTRIBUTING.md that a program can check."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ifkd", "export", "deploy")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROSE = [*MODULES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONE_FILE_EACH = (ROOT / "ifkd" / "distillation" / "methods", ROOT / "deploy" / "cli")
"""Folders with a module for each method or command."""

WORDS = {
    "answer": r"answer(?:s|ed|ing)?",
    "mend": r"mend(?:s|ed|ing)?",
    "told": r"told|tells?",
    "look at": r"look(?:s|ed|ing)? at",
    "lie": r"lies|lying",
    "anew": r"anew",
    "rightly": r"rightly",
    "of old": r"of old",
    "whoever": r"whoever",
    "so it is": r"so it is",
    "verb": r"verbs?",
    "sidecar": r"sidecars?",
    "census": r"census",
    "go on": r"go(?:es)? on|went on",
}
"""Words that the code and the documents used in place of a common one; the key names the test."""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documented(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of a module and of its classes and functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield getattr(node, "name", path.name), ast.get_docstring(node) or ""


def body_lines(node: ast.FunctionDef) -> int:
    """Return the lines of a function below its signature and docstring."""
    first = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_class_names_are_unique() -> None:
    owners = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and node.name != "Arguments":  # each command has its own
                owners[node.name].append(name_of(path))
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}


def test_a_folder_has_at_most_twelve_modules() -> None:
    count = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    large = {name_of(folder): modules for folder, modules in count.items() if modules > 12}
    assert large.keys() <= set(map(name_of, ONE_FILE_EACH))


def test_modules_are_short() -> None:
    lines = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}
    assert sorted(lines.values())[int(0.9 * len(lines))] <= 280


def test_functions_are_short() -> None:
    functions = [
        (name_of(path), node.name, body_lines(node))
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef)
    ]
    assert [found for found in functions if found[2] > 60] == []


def test_docstrings_state_what_the_code_does() -> None:
    questions = re.compile(r"(?:What|How|Who|Where)\b")
    found = [
        f"{name_of(path)}: {name}: {text.splitlines()[0]}"
        for path in MODULES
        for name, text in documented(path)
        if questions.match(text)
    ]
    assert found == []


@pytest.mark.parametrize("word", WORDS)
def test_words_are_common(word: str) -> None:
    pattern = re.compile(rf"\b(?:{WORDS[word]})\b", re.IGNORECASE)
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in PROSE
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_unit_tests_mirror_the_packages() -> None:
    """A test file is named after its module, with a suffix where a module has several."""
    astray = []
    for path in (ROOT / "tests" / "unit").glob("*/**/test_*.py"):
        folder = ROOT / path.parent.relative_to(ROOT / "tests" / "unit")
        modules = {module.stem for module in folder.iterdir()}
        tested = path.stem.removeprefix("test_")
        if not any(tested == module or tested.startswith(f"{module}_") for module in modules):
            astray.append(name_of(path))
    assert astray == []


def test_file_names_of_tests_are_unique() -> None:
    count = Counter(
        path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in {"__init__.py", "conftest.py"}
    )
    assert [name for name, files in count.items() if files > 1] == []
