"""Figure of a comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.study_records import comparison_record, evaluated_run

from ifkd.study.figures.results import draw_comparison


def test_variants_are_sorted_by_their_mean(
    tmp_path: Path, check_figure: Callable[..., None], read_rows: Callable[..., Any]
) -> None:
    students = {
        "student": (evaluated_run(0.30), evaluated_run(0.34)),
        "frs": (evaluated_run(0.35), evaluated_run(0.37)),
        "fgd": (evaluated_run(0.36), None),
        "ifkd": (evaluated_run(0.41), evaluated_run(0.29)),
        "absent": (None, None),
    }
    record = comparison_record(students=students, teacher=evaluated_run(0.4))
    paths = draw_comparison(record, tmp_path)
    check_figure(tmp_path, "comparison")
    rows = [(row["variant"], row["seed"], float(row["map_points"])) for row in read_rows(paths[-1])]
    assert rows == [
        ("teacher", "4", 40.0),
        ("frs", "4", 35.0),
        ("frs", "5", 37.0),
        ("fgd", "4", 36.0),
        ("ifkd", "4", 41.0),
        ("ifkd", "5", 29.0),
        ("student", "4", 30.0),
        ("student", "5", 34.0),
    ]
    without_plain = record.model_copy(update={"students": {"ifkd": students["ifkd"]}})
    assert len(draw_comparison(without_plain, tmp_path / "without_the_plain_student")) == 4
