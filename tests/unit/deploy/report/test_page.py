import base64
import builtins
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from fakes import drifting_engine as fake
from fakes import report_inputs as parts
from PIL import Image

from deploy.accuracy.provenance import read_result
from deploy.report import charts
from deploy.report.charts import NamedPoint, SampleSeries
from deploy.report.page import console, render, setting_rows, write_report
from deploy.report.report import Report, assemble
from deploy.report.reported_scene import read_picture, read_scene_run
from deploy.report.tables import accuracy_table, engine_table, fastest_files
from deploy.scene.screen.audit import AuditRecord, ScreeningRecord
from ifkd.core.errors import DataError, MissingExtraError
from ifkd.core.html.chart import Series, bar_chart
from ifkd.data.metrics import evaluate

VOID = {"meta", "img", "link", "br", "hr", "input", "rect", "circle", "line", "path"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, identities are unique, labels lead somewhere."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.identities, self.references = [], [], []
        self.elements, self.words = [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        assert len(facts) == len(attributes), (tag, attributes)
        self.elements.append((tag, facts))
        if "id" in facts:
            self.identities.append(facts["id"])
        self.references += facts.get("aria-labelledby", "").split()
        if facts.get("href", "").startswith("#"):
            self.references.append(facts["href"][1:])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return parts.full_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def pages(full):
    return render(full)


def page_of(report):
    return Page(render(report)["report.html"].decode())


def test_equal_input_gives_equal_bytes(full, pages, tmp_path):
    assert render(full) == pages
    write_report(full, tmp_path / "a")
    again = read_result(tmp_path / "a" / "report.json", Report, command="ifkd report")
    assert again == full
    write_report(again, tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_page_is_well_formed_and_its_labels_lead_somewhere(pages):
    text = pages["report.html"].decode()
    assert text.lstrip().startswith("<!doctype html>")
    page = Page(text)
    assert len(page.identities) == len(set(page.identities))
    assert set(page.references) <= set(page.identities)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("title") - tags.count("svg") == 1
    assert dict(page.elements)["html"]["lang"] == "en"


def test_the_page_has_no_external_resource(pages):
    text = pages["report.html"].decode()
    assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, facts in page.elements:
        assert facts.get("src", "data:").startswith("data:")
        assert facts.get("href", "#").startswith("#")


def test_pictures_and_charts_have_alternative_text(pages):
    page = Page(pages["report.html"].decode())
    images = [facts for tag, facts in page.elements if tag == "img"]
    assert len(images) == 2
    assert all(len(facts["alt"]) > 20 and facts["width"] and facts["height"] for facts in images)
    drawings = [facts for tag, facts in page.elements if tag == "svg"]
    assert len(drawings) == 10
    assert all(facts["role"] == "img" and len(facts["aria-labelledby"].split()) == 2 for facts in drawings)
    headings = [facts for tag, facts in page.elements if tag == "th"]
    assert all(facts.get("scope") in {"col", "row"} for facts in headings)
    regions = [facts for tag, facts in page.elements if facts.get("role") == "region"]
    assert all(facts["tabindex"] == "0" for facts in regions)


def test_the_figures_are_on_every_page(full, pages):
    html = page_of(full).text
    markdown = pages["report.md"].decode()
    terminal = console(full)
    for evaluation in full.evaluations.values():
        for text in (html, markdown, terminal):
            assert f"{evaluation.metrics.mean_ap:.3f}" in text
            assert f"{evaluation.metrics.ap75:.3f}" in text
    for text in (html, markdown, terminal):
        assert "36.40 M" in text
        assert "31%" in text
        assert "stable, n=60" in text
        assert "UNSTABLE" in text
        assert "needs an NVIDIA GPU" in text
        assert "24.9" in text
        assert "warnings" in text
    for text in (html, markdown.replace("\\", "")):
        assert "The encoder of EDE had random weights." in text
        assert "Demonstration on made-up squares." in text
        assert "Warm-up of at least 0.5 s" in text
        assert "12 images with 48 objects" in text
        assert "tanker 4, cargo 33" in text
        assert "Example CPU @ 2.4 GHz" in text


def test_markdown_shows_all_charts(pages):
    named = re.findall(r"\]\((figures/[^)]+)\)", pages["report.md"].decode())
    assert len(named) == 12
    assert set(named) == set(pages) - {"report.html", "report.md"}


def test_charts_stand_alone_as_svg(pages):
    for name, content in pages.items():
        if name.endswith(".svg"):
            root = ET.fromstring(content.decode())  # noqa: S314
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root[0].text
            assert "prefers-color-scheme:dark" in content.decode()


def test_all_samples_are_in_the_file(full, tmp_path):
    write_report(full, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema_version"] == 2
    cell = content["benches"][0]["cells"][0]
    assert sum(map(len, cell["latency"]["windows_ns"])) == 60
    picture = content["scenes"][0]["pictures"][0]
    assert base64.b64decode(picture["data_base64"]).startswith(b"\x89PNG")


def test_text_of_users_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> | `*_'
    found = parts.evaluations(parts.dataset(tmp_path))
    evaluations = {evil: found["teacher"], f"{evil} 2": found["plain student"]}
    report = assemble(title=evil, evaluations=evaluations, benches=[parts.bench()], notes=[evil])
    files = render(report)
    page = Page(files["report.html"].decode())
    assert not any(tag == "script" for tag, _ in page.elements)
    assert page.text.count('alert("x")') > 3
    markdown = files["report.md"].decode()
    assert "<script>" not in markdown.replace("\\<", "")
    row = next(line for line in markdown.splitlines() if "retinanet" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 10
    for name, content in files.items():
        if name.endswith(".svg"):
            ET.fromstring(content.decode())  # noqa: S314


@pytest.mark.parametrize("missing", ["evaluations", "benches", "parities", "scenes", "environment"])
def test_a_missing_part_is_left_out(full, missing):
    empty = {} if missing in {"evaluations", "environment"} else ()
    report = full.model_copy(update={missing: empty})
    page = page_of(report)
    anchor = {"evaluations": "accuracy", "parities": "parity", "scenes": "scene", "environment": "environment"}
    assert anchor.get(missing, "") not in page.identities
    assert set(page.references) <= set(page.identities)
    assert console(report)


def test_one_evaluation_alone_makes_a_report(tmp_path):
    data = parts.dataset(tmp_path)
    report = assemble(title="One", evaluations={"student": parts.evaluations(data)["plain student"]})
    page = page_of(report)
    assert report.verdict.status == "incomplete"
    assert "No verdict" in page.text
    assert "#engines" not in str(page.elements)
    assert engine_table(report.benches, report.parities) is None


def test_the_operational_figures_of_a_scene_are_in_tables(tmp_path):
    scene = read_scene_run(parts.scene_folder(tmp_path / "s", objects=37))
    files = render(assemble(title="Harbor", evaluations={}, scenes=[scene]))
    caption = "Operational figures: score from 0.3, centers closer than 20 m, 1.68 km² searched, 95% intervals"
    for row in (
        "all classes | 32 | 40 | 0.800 (0.652 to 0.895) | 5 | 2.98 (0.966 to 6.95)",
        "all, of any class | 33 | 40 |",
        "small, below 25 m | 6 | 10 |",
        "medium, 25 m to 100 m | 26 | 30 |",
        "large, from 100 m | 0 | 0 | – | 0 | 0 (0 to 2.2)",
        "0.35 | 29 | 40 |",
    ):
        assert f"| {row}" in files["report.md"].decode()
    assert caption in Page(files["report.html"].decode()).text


def test_the_skipped_tiles_of_a_scene_are_stated(tmp_path):
    audit = AuditRecord(
        tiles=4, found=(), lost=5.0, lost_interval=(3.0, 9.0), lost_fraction=0.12, lost_fraction_interval=(0.08, 0.2),
        contradicts_bound=True,
    )  # fmt: skip
    screening = ScreeningRecord(
        threshold=0.2, is_on=True, passed=40, skipped=160, left_out=0, read_reduction=1.0, bound=0.005,
        assumption="This holds for such scenes.", audit=audit,
    )  # fmt: skip
    folder = parts.scene_folder(tmp_path / "s", objects=37)
    record = parts.run_record(37).model_copy(update={"screening": screening})
    (folder / "run.json").write_text(record.model_dump_json())
    text = page_of(assemble(title="Sea", evaluations={}, scenes=[read_scene_run(folder)])).text
    assert "160 tiles skipped, 40 passed at 0.2, at most 0.50% lost in expectation; audit of 4: 5 lost (3 to 9)" in text
    assert "The audit contradicts the bound of the screen, 0.50%" in text


def test_a_scene_without_objects_or_pictures_makes_a_report(tmp_path):
    scene = read_scene_run(parts.scene_folder(tmp_path / "s", objects=0, pictures=False))
    text = page_of(assemble(title="Empty", evaluations={}, scenes=[scene])).text
    assert "Objects 0" in text
    assert "By class none" in text


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"schema_version": 1, "scene": {"name": "x.tif"}}'])
def test_a_folder_without_a_valid_run_record_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        read_scene_run(tmp_path)


def darkened(candidates):
    candidates.scores[:] *= 0.9
    return candidates


def test_a_failed_parity_is_stated_first(tmp_path):
    report = parts.full_report(tmp_path, drift=darkened)
    assert report.verdict.status == "failed"
    text = page_of(report).text
    assert text.index("Failed") < text.index("Accuracy")
    assert "scores are 0.900 times the reference's" in text
    assert "FAILED 0.1 (≤ 0.01)" in text
    fp16 = [row for row in engine_table(report.benches, report.parities).rows if row[0] == "model.fp16.onnx"]
    fp32 = [row for row in engine_table(report.benches, report.parities).rows if row[0] == "model.onnx"]
    assert {row[8] for row in fp16} == {"FAILED"}
    assert {row[8] for row in fp32} == {"passed"}


def test_engines_are_listed_by_speed_and_the_fastest_that_passed_is_named(full):
    slowest_first = full.benches[0].model_copy(update={"cells": full.benches[0].cells[::-1]})
    report = full.model_copy(update={"benches": (slowest_first,)})
    rows = [row for row in engine_table(report.benches, report.parities).rows if "not measured" not in row[9]]
    own = [float(row[5]) / int(row[4]) for row in rows if not row[0].startswith("reference")]
    first_of_each = [own[0], *(own[index] for index in range(1, len(own)) if rows[index][0] != rows[index - 1][0])]
    assert first_of_each == sorted(first_of_each)
    (line,) = fastest_files(report.benches, report.parities)
    fastest = next(row for row in rows if row[8] == "passed")
    assert fastest[0] in line
    assert line in console(report)
    assert line in page_of(report).text


def test_no_file_is_named_where_none_passed_parity(tmp_path):
    report = parts.full_report(tmp_path, drift=darkened)
    assert all("model.fp16.onnx" not in line for line in fastest_files(report.benches, report.parities))
    assert fastest_files(report.benches, ()) == []


def test_overlapped_throughput_has_a_column_where_it_was_measured(full):
    bench = full.benches[0]
    cells = (bench.cells[0].model_copy(update={"pipelined_tiles_per_s": 1234.5}), *bench.cells[1:])
    files = render(full.model_copy(update={"benches": (bench.model_copy(update={"cells": cells}),)}))
    lines = files["report.md"].decode().splitlines()
    (heading,) = (number for number, line in enumerate(lines) if "| Tiles/s overlapped |" in line)
    width = lines[heading].count("|")
    for name, expected in (("onnxruntime fp32", "1,234"), ("onnxruntime fp16", "–")):
        row = next(line for line in lines[heading + 2 :] if line.startswith(f"| {name}"))
        assert (row.count("|"), row.split("|")[-2].strip()) == (width, expected)
    assert "Tiles/s overlapped" in files["report.html"].decode()
    assert "overlapped" not in render(full)["report.md"].decode()


def test_parity_is_shown_only_for_the_same_file(full):
    cell = full.benches[0].cells[0]
    other = cell.model_copy(update={"engine": cell.engine.model_copy(update={"sha256": "9" * 64})})
    bench = full.benches[0].model_copy(update={"cells": (other,)})
    assert engine_table((bench,), full.parities).rows[0][8] == "–"


def test_a_file_that_failed_in_any_parity_is_not_named(full):
    parity, bench = full.parities[0], full.benches[0]
    failed = [cell.model_copy(update={"passed": False}) for cell in parity.cells]
    both = (parity, parity.model_copy(update={"cells": tuple(failed)}))
    assert fastest_files((bench,), both) == fastest_files((bench,), both[::-1]) == []
    assert {row[8] for row in engine_table((bench,), both).rows} <= {"FAILED", "reference", "–"}


def test_files_that_were_timed_but_not_compared_are_a_warning(full):
    parity = full.parities[0].model_copy(update={"cells": full.parities[0].cells[:1]})
    report = assemble(title="T", evaluations={}, benches=full.benches, parities=[parity])
    assert report.verdict.headline.startswith("All engine files that were compared match")
    missing = [one.text for one in report.verdict.reasons if "was timed, but not compared" in one.text]
    assert missing
    assert all(full.parities[0].cells[0].name not in text for text in missing)


def test_an_interrupted_measurement_is_stated(tmp_path):
    report = assemble(title="T", evaluations={}, benches=[parts.bench(partial=True)])
    assert "Interrupted: not all rounds were measured." in page_of(report).text
    assert any("interrupted" in reason.text for reason in report.verdict.reasons)


def test_data_without_objects_and_parity_without_engines_give_no_verdict(tmp_path):
    data = parts.dataset(tmp_path)
    without = replace(data, images=tuple(replace(one, ignore=np.ones_like(one.ignore)) for one in data.images))
    found = {"distilled student": parts.evaluations(without)["distilled student"], **parts.evaluations(data)}
    empty = found["distilled student"].model_copy(update={"metrics": evaluate(without, {})})
    parity = parts.parity(data).model_copy(update={"cells": (), "reference_metrics": evaluate(without, {})})
    report = assemble(title="Empty", evaluations={**found, "distilled student": empty}, benches=[], parities=[parity])
    assert report.verdict.status == "incomplete"
    assert "No object is labeled in the data of distilled student" in report.verdict.reasons[-1].text
    html = render(report)["report.html"].decode()
    assert "0.000" not in console(report)
    assert "mAP –;" in html


def test_different_data_is_a_warning(tmp_path):
    one, two = (parts.evaluations(parts.dataset(tmp_path / name)) for name in ("a", "b"))
    changed = two["teacher"].data.model_copy(update={"sha256": "5" * 64})
    evaluations = {"student": one["plain student"], "teacher": two["teacher"].model_copy(update={"data": changed})}
    report = assemble(title="T", evaluations=evaluations)
    assert any("different annotation files" in reason.text for reason in report.verdict.reasons)


def test_the_gain_of_distillation_is_stated(full):
    text = " ".join(reason.text for reason in full.verdict.reasons)
    plain, distilled = (full.evaluations[name].metrics.mean_ap for name in ("plain student", "distilled student"))
    assert f"{distilled - plain:+.3f}" in text
    assert "31% of the teacher's parameters" in text


def test_large_pictures_are_reduced(tmp_path):
    path = tmp_path / "large.png"
    Image.effect_noise((2400, 1200), 60).save(path)
    picture = read_picture(path, alt="Noise")
    assert (picture.width_px, picture.height_px) == (1600, 800)
    assert picture.media_type == "image/jpeg"
    assert base64.b64decode(picture.data_base64).startswith(b"\xff\xd8")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        read_picture(path, alt="x")


def test_without_jinja_the_extra_is_named(full, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **more):
        if name == "jinja2":
            raise ImportError(name="jinja2")
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"ifkd\[report\]"):
        render(full)


def test_nested_facts_become_pairs():
    facts = {"a": {"b": 1, "c": None}, "d": [1, 2], "e": [], "f": [{"g": 1}]}
    assert setting_rows(facts) == [("a.b", "1"), ("a.c", "unknown"), ("d", "1, 2"), ("e", "none"), ("f", '[{"g": 1}]')]


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.55)], [(1, 0.5), (2, 0.6)]),
        ([(1, 0.5), (1, 0.6)], [(1, 0.6)]),
        ([(5, 0.1)], [(5, 0.1)]),
    ],
)
def test_the_pareto_front_has_no_better_points(points, front):
    found = charts.pareto_front([NamedPoint("", float(x), y) for x, y in points])
    assert [(point.x, point.y) for point in found] == front


def test_charts_take_extreme_values():
    charts.scatter_chart("s", "t", [NamedPoint("a", 0.0, 0.0), NamedPoint("b", 0.0, 0.0)], x_label="x", y_label="y")
    charts.strip_chart("s", "t", [SampleSeries("a", (5.0,)), SampleSeries("b", (5.0, 5.0))], unit="ms")
    wide = charts.strip_chart("s", "t", [SampleSeries("a", (0.5, 0.6)), SampleSeries("b", (700.0, 800.0))], unit="ms")
    assert "logarithmic" in wide.body
    bar_chart("s", "t", ["a"], [Series("x", (None,))], maximum=1.0, x_label="x")
    charts.line_chart("s", "t", [Series("x", (0.0,))], steps=[1], x_label="x", y_label="y")


def test_the_accuracy_table_has_a_row_per_detector(full):
    table = accuracy_table(full.evaluations)
    assert [row[0] for row in table.rows] == ["teacher", "plain student", "distilled student"]
    assert table.rows[0][1] == "retinanet resnet50, 256 channels"
    assert len(fake.CLASSES) == 3
