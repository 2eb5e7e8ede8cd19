"""Figure 5."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.study_records import sweep_record

from ifkd.study.figures.results import draw_sensitivity


def test_a_sweep_is_drawn_with_its_data_and_reproducibly(
    tmp_path: Path, check_figure: Callable[..., None], read_rows: Callable[..., Any]
) -> None:
    record = sweep_record("beta")
    paths = draw_sensitivity(record, tmp_path / "a")
    names = [f"figure5-sensitivity-beta.{file_format}" for file_format in ("png", "svg", "pdf", "csv")]
    assert [path.name for path in paths] == names
    check_figure(tmp_path / "a", "figure5-sensitivity-beta")
    rows = [(row["series"], row["value"], row["seed"], float(row["map_points"])) for row in read_rows(paths[-1])]
    assert rows == [
        ("teacher", "", "4", 40.0),
        ("student", "", "4", 30.0),
        ("student", "", "5", 34.0),
        ("beta", "0.02", "4", 35.0),
        ("beta", "0.02", "5", 37.0),
        ("beta", "0.06", "4", 38.0),
    ]
    for first, second in zip(paths, draw_sensitivity(record, tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
