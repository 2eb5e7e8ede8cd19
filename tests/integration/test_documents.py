"""Compare the documents with the code: links, commands, paths, functions and options."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from deploy.cli.main import COMMANDS
from ifkd import recipe
from ifkd.models.mobile_sam.encoder import CHECKPOINT_BYTES, CHECKPOINT_SHA256, CHECKPOINT_URL

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
METHOD = ROOT / "docs" / "method.md"
README = ROOT / "README.md"
PACKAGES = ("ifkd", "export", "deploy")
BRANCH = re.compile(r"^(?P<indent>(?:│   |    )*)(?:├── |└── )?(?P<name>[\w./]+)(?P<rest>.*)$")
MARK = re.compile(r"^ +n( |$)")


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return the files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("this copy is not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def text_of(path: Path) -> str | None:
    """Return a text file's content, or None for a binary one."""
    content = path.read_bytes()
    return None if b"\0" in content else content.decode("utf-8")


def documents() -> list[Path]:
    folders = (ROOT, ROOT / "docs", ROOT / "docs" / "decisions")
    return sorted(path for folder in folders for path in folder.glob("*.md"))


def inline_code(path: Path) -> list[str]:
    """Return the text between single backticks, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL))


def tree_entries() -> dict[str, bool]:
    """Return path -> whether it is marked `n`, for the tree of the architecture page; folders end in a slash."""
    block = re.search(r"```\n(pyproject.*?)```", ARCHITECTURE.read_text("utf-8"), flags=re.DOTALL)
    assert block is not None
    entries: dict[str, bool] = {}
    above: list[str] = []
    for line in block.group(1).splitlines():
        found = BRANCH.match(line)
        if found is None:
            continue
        nested = "├" in line[:40] or "└" in line[:40]
        depth = len(found["indent"]) // 4 + 1 if nested else 0
        above = [*above[:depth], found["name"]]
        entries["".join(above)] = MARK.match(found["rest"]) is not None
    return entries


def names_in(path: Path) -> set[str]:
    """Return the functions, classes, constants and `Class.member`s that a module defines."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8"))
    relative = [target.split("#")[0] for target in targets if "://" not in target]
    dead = [target for target in relative if target and not (document.parent / target).exists()]
    assert not dead, f"{document.name} has dead links: {dead}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_paths_in_code_exist(document: Path) -> None:
    paths = [
        code for code in inline_code(document) if re.fullmatch(r"(ifkd|export|deploy|configs|tests)/[\w/.]*", code)
    ]
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"{document.name} names paths that do not exist: {missing}"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    commands = set(re.findall(r"(?:^|`|/)ifkd ([a-z]+)\b", text, flags=re.MULTILINE))
    unknown = sorted(commands - COMMANDS.keys())
    assert not unknown, f"{document.name} names commands that do not exist: {unknown}"


def test_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| `ifkd ([a-z]+)` \|", README.read_text("utf-8"), flags=re.MULTILINE)
    assert rows == list(COMMANDS)


def test_readme_states_the_published_checkpoint() -> None:
    text = README.read_text("utf-8")
    for fact in (CHECKPOINT_URL, f"{CHECKPOINT_BYTES:,} bytes", CHECKPOINT_SHA256):
        assert fact in text


def test_readme_names_every_recipe() -> None:
    named = {path.name for path in (ROOT / "configs").glob("*.toml") if "[teacher" in path.read_text("utf-8")}
    absent = [name for name in sorted(named) if f"configs/{name}" not in README.read_text("utf-8")]
    assert not absent, f"README does not name the recipes {absent}"


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    for document in documents():
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", document.read_text("utf-8"), flags=re.MULTILINE))
        assert named <= targets, f"{document.name} names targets that do not exist: {sorted(named - targets)}"


def test_tree_has_no_missing_paths() -> None:
    entries = tree_entries()
    missing = [entry for entry in entries if not (ROOT / entry).exists()]
    assert len(entries) > 50
    assert not missing, f"docs/architecture.md lists paths that do not exist: {missing}"


def test_tree_has_every_module() -> None:
    """A folder listed without its modules counts for all of them."""
    entries = tree_entries()
    closed = [
        entry for entry in entries if entry.endswith("/") and sum(other.startswith(entry) for other in entries) == 1
    ]
    modules = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    absent = [
        module
        for module in modules
        if not module.endswith("__init__.py")
        and module not in entries
        and not any(module.startswith(folder) for folder in closed)
    ]
    assert not absent, f"docs/architecture.md does not list {sorted(absent)}"


def test_modules_marked_n_import_without_torch() -> None:
    marked = [entry for entry, free in tree_entries().items() if free]
    modules = [entry.removesuffix(".py").rstrip("/").replace("/", ".") for entry in marked]
    program = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "print(sorted({'torch', 'torchvision', 'timm'} & sys.modules.keys()))"
    )
    imported = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(modules) > 20
    assert imported.stdout.strip() == "[]", imported.stdout + imported.stderr


def test_functions_named_in_the_method_page_exist() -> None:
    references = [code.split("::") for code in inline_code(METHOD) if "::" in code and code != "file::name"]
    assert len(references) > 20
    missing = [f"{path}::{name}" for path, name in references if name not in names_in(ROOT / path)]
    assert not missing, f"docs/method.md names functions that do not exist: {missing}"


def method_options() -> set[str]:
    """Return IFKD's options in the notation of the method page."""
    options: set[str] = set()
    for name, field in recipe.IfkdOptions.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            options |= {f"{name}.{part}" for part in kind.model_fields}
        else:
            options.add(name)
    return options


def test_options_named_in_the_method_page_exist() -> None:
    dotted = {code for code in inline_code(METHOD) if re.fullmatch(r"(ede|fdr|hsm|head|adapter)\.\w+", code)}
    unknown = dotted - method_options()
    assert not unknown, f"docs/method.md names options that do not exist: {sorted(unknown)}"


def test_method_page_names_every_option_that_is_a_choice() -> None:
    named = set(inline_code(METHOD))
    house_keeping = {"name", "ede.cache", "ede.weights", "ede.fall_back_to_random"}
    absent = method_options() - named - house_keeping
    assert not absent, f"docs/method.md does not mention {sorted(absent)}"


FORBIDDEN = {
    "session": re.compile(r"(?<!scope=\")\bsessions?\b", re.IGNORECASE),
    "helper": re.compile(r"(?<!onnx\.)\bhelpers?\b", re.IGNORECASE),
    "a machine's path": re.compile(r"(?<!\w)/work/"),
    "the folder of shared imagery": re.compile(r"shared/"),
}
EXCEPTIONS = {
    # ONNX Runtime's word for a loaded model, the benchmarks' for engines that are measured together, pytest's scope
    "session": lambda path, text: (
        re.search("onnxruntime|open_session|ONNX Runtime|BenchmarkSession|bench.session", text)
        or path.parent.name == "tests"
    ),
    "the folder of shared imagery": lambda path, _: path.name == "CONTRIBUTING.md" or "tests" in path.parts,
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_project_speaks_of_itself_alone(what: str) -> None:
    allowed = EXCEPTIONS.get(what, lambda _path, _text: False)
    found = []
    for path in tracked_files():
        text = text_of(path)
        if text is None or path == Path(__file__).resolve() or path.name == "LICENSE" or allowed(path, text):
            continue
        lines = enumerate(text.splitlines(), 1)
        found += [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if FORBIDDEN[what].search(line)]
    assert not found, f"{what} is mentioned in {found}"
