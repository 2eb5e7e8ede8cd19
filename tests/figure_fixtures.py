"""A study with four finished runs, and functions that read the files of figures."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="session")
def study_folder(
    make_once: Callable[[str, Callable[[Path], object]], Path], make_recipe: Callable[[Path], dict[str, Any]]
) -> Path:
    """A study of one epoch with a teacher, a plain student, AT and IFKD; its data is beside it in `data`. Read only."""
    from ifkd.core.config import parse
    from ifkd.recipe import Recipe
    from ifkd.training.pipelines import distill_student, train_role

    def make(folder: Path) -> None:
        values = make_recipe(folder / "data")
        values["data"]["train"] = "val.json"
        for part in (values["teacher"], values["student"], values["distillation"]):
            part["training"]["epochs"] = 1
        study = folder / "study"
        train_role(parse(values, Recipe, source="values"), "teacher", study / "teacher")
        for name, method in (("student", {"name": "none"}), ("at", {"name": "at"}), ("ifkd", None)):
            options = values["distillation"]["method"] if method is None else method
            changed = {**values, "distillation": {**values["distillation"], "method": options}}
            recipe = parse(changed, Recipe, source="values")
            distill_student(recipe, study / "teacher" / "best.safetensors", study / f"{name}-5")

    return make_once("figures", make) / "study"


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """The function that reads a CSV file."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))

    return read


@pytest.fixture(scope="session")
def check_figure(read_rows: Callable[[Path], list[dict[str, str]]]) -> Callable[[Path, str], None]:
    """The function that opens a figure's PNG, SVG, PDF and CSV files: (folder, name)."""

    def check(folder: Path, name: str) -> None:
        with Image.open(folder / f"{name}.png") as image:
            image.load()
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == f"{SVG}svg"
        assert next(root.iter(f"{SVG}path"), None) is not None
        content = (folder / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF-1.")
        assert content.rstrip().endswith(b"%%EOF")
        assert content.count(b"/Type /Page ") == 1
        assert read_rows(folder / f"{name}.csv")

    return check
