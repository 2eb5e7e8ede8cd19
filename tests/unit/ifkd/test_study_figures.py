"""Figures of a study: the numbers behind them, and files that open and do not change from day to day."""

import csv
from pathlib import Path

import numpy as np
import pytest
from defusedxml import ElementTree
from PIL import Image

from ifkd.data.evaluation import Metrics
from ifkd.errors import MissingExtraError
from ifkd.study.figures import drawing
from ifkd.study.figures.drawing import Numbers
from ifkd.study.figures.sensitivity import draw_sensitivity
from ifkd.study.record import Outcome, StudyRecord

SVG = "{http://www.w3.org/2000/svg}"


def reached(mean_ap: float) -> Outcome:
    metrics = Metrics(mean_ap=mean_ap, ap50=mean_ap, ap75=mean_ap, images=1, objects=1, per_class={})
    return Outcome(metrics=metrics, seconds=1.0, checkpoint_sha256="0" * 64)


def sweep() -> StudyRecord:
    """Return a sweep of beta over two seeds."""
    students = {
        "student": (reached(0.30), reached(0.34)),
        "beta=0.1": (reached(0.35), reached(0.37)),
        "beta=0.5": (reached(0.36), None),
    }
    return StudyRecord(
        title="Sweep", recipe="r", recipe_toml="", seeds=(1, 2), teacher=reached(0.4), students=students,
        parameter="beta", values={"beta=0.1": 0.1, "beta=0.5": 0.5},
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def opened(paths: list[Path]) -> None:
    """Open a figure's files as others do: Pillow, an XML parser, and by eye of the PDF's own words."""
    png, svg, pdf, data = paths
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf", ".csv"]
    with Image.open(png) as picture:
        picture.load()
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    root = ElementTree.parse(svg).getroot()
    assert root.tag == f"{SVG}svg"
    assert next(root.iter(f"{SVG}path"), None) is not None
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-1.")
    assert content.rstrip().endswith(b"%%EOF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") == 1
    assert rows(data)


def same_bytes(first: list[Path], second: list[Path]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes(), one.suffix


def test_a_sweep_is_drawn_with_the_numbers_behind_it(tmp_path: Path) -> None:
    paths = draw_sensitivity(sweep(), tmp_path / "a")
    opened(paths)
    assert [path.name for path in paths[:1]] == ["figure5-sensitivity-beta.png"]
    told = [(row["series"], row["value"], row["seed"], float(row["map_points"])) for row in rows(paths[-1])]
    assert told == [
        ("teacher", "", "1", 40.0),
        ("student", "", "1", 30.0),
        ("student", "", "2", 34.0),
        ("beta", "0.1", "1", 35.0),
        ("beta", "0.1", "2", 37.0),
        ("beta", "0.5", "1", 36.0),
    ]
    same_bytes(paths, draw_sensitivity(sweep(), tmp_path / "b"))


def test_numbers_keep_what_float32_tells_apart() -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    lines = Numbers(("a",), [(float(value),) for value in values]).csv().splitlines()[1:]
    assert (np.array(lines, np.float32) == values).all()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"ifkd\[figures\]"):
        drawing.need_matplotlib()
