"""Tables and page of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.study_records import comparison_record, learning_curves, sweep_record

from ifkd.study.learning_curves import LearningCurves, average_runs
from ifkd.study.study_record import StudyRecord, map_difference
from ifkd.study.study_report import class_tables, study_table, write_study


def test_the_table_has_spreads_gains_and_the_papers_metrics() -> None:
    table = study_table(comparison_record(dataset="shiprsimagenet"))
    assert table.headings[-1] == "paper"
    rows = {row[0]: row for row in table.rows}
    assert rows["ifkd"] == ("ifkd", "38.5 ± 3.5", "61.0 ± 1.4", "39.5 ± 2.1", "+6.5", "+0.1 to +12.9", "-1.5",
                            "1.0", "46.1 / 59.8 / 51.5")  # fmt: skip
    assert rows["student"][4:6] == ("", "")
    assert "paper" not in study_table(comparison_record()).headings


def test_class_tables_are_means_over_seeds() -> None:
    ap, ap50 = class_tables(comparison_record())
    assert ap.headings == ap50.headings == ("class", "objects", "teacher", "student", "fgd", "ifkd")
    assert ap.rows == (("ferry", "3", "40.0", "32.0", "34.0", "38.5"),)
    assert ap50.rows == (("ferry", "3", "61.0", "53.0", "56.0", "61.0"),)


def test_unfinished_runs_are_listed_and_left_out_of_means() -> None:
    record = comparison_record()
    students = {**record.students, "ifkd": (record.students["ifkd"][0], None), "pkd": (None, None)}
    record = record.model_copy(update={"students": students})
    assert record.unfinished == ["ifkd-5", "pkd-4", "pkd-5"]
    rows = {row[0]: row for row in study_table(record).rows}
    assert rows["teacher"][-1] == "1 of 1"
    assert rows["ifkd"][1:6] == ("36.0", "60.0", "38.0", "+6.0", "–")
    assert rows["ifkd"][-1] == "1 of 2"
    assert rows["pkd"][1:] == (*["–"] * 7, "0 of 2")
    assert map_difference(record, "pkd") is None
    assert "pkd" not in class_tables(record)[0].headings


def test_the_page_fits_a_phone_and_a_desktop(open_page: Callable[..., Any], tmp_path: Path) -> None:
    write_study(sweep_record(), tmp_path / "sweep", learning_curves())
    write_study(comparison_record(), tmp_path / "comparison", learning_curves())
    for name, width, scheme in (("comparison", 1280, "light"), ("comparison", 390, "dark"), ("sweep", 390, "light")):
        visit = open_page(tmp_path / name / "study.html", width=width, scheme=scheme)
        assert visit.errors == []
        assert visit.overflow_px() == 0
        assert visit.page.locator("svg.chart").count() == 2 + 4  # results, validation, and the losses of each label
        visit.page.locator("summary").first.click()
        assert visit.page.locator("svg.chart").last.is_visible()
        assert visit.overflow_px() == 0
    assert "alpha=0.06-5" in visit.page.locator(".notes").inner_text()


def test_the_page_is_valid_and_agrees_with_the_other_files(
    tmp_path: Path, html_errors: Callable[..., list[str]]
) -> None:
    record = comparison_record(
        machines={"a <machine>": 7}, conditions={"data": "a & b"}, verdict=("fgd is below <plain>.",)
    )
    paths = write_study(record, tmp_path, learning_curves())
    assert StudyRecord.model_validate_json(paths[0].read_bytes()) == record
    assert "| ifkd | 38.5 ± 3.5 |" in paths[1].read_text(encoding="utf-8")
    assert "- data: a & b\n- trained on: a <machine> (7 runs)" in paths[1].read_text(encoding="utf-8")
    assert "\n- fgd is below <plain>.\n" in paths[1].read_text(encoding="utf-8")
    assert "Methods &lt;compared&gt;" in paths[2].read_text(encoding="utf-8")
    assert "<li>fgd is below &lt;plain&gt;.</li>" in paths[2].read_text(encoding="utf-8")
    write_study(sweep_record(), tmp_path / "sweep")
    assert html_errors(paths[2], tmp_path / "sweep" / "study.html") == []


def test_curves_without_a_line_have_no_chart(tmp_path: Path) -> None:
    """A single validation makes no line, and a logarithmic axis shows no loss of 0."""
    point = LearningCurves(average_runs([{1.0: 10.0}]), {"task": average_runs([{0.0: 0.0, 10.0: 0.0}])})
    page = write_study(comparison_record(), tmp_path, {"teacher": point})[-1].read_text(encoding="utf-8")
    assert (page.count('class="chart"'), "Validation mAP by epoch" in page) == (1, False)
    curves = {"teacher": point, "pkd": learning_curves()["ifkd"]}
    page = write_study(comparison_record(), tmp_path, curves)[-1].read_text(encoding="utf-8")
    assert (page.count('class="chart"'), "Validation mAP by epoch" in page) == (3, True)
