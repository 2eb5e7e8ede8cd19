import json
import re

import pytest
from fakes import report_inputs as parts

from deploy.bench.latency import GroundCoverage, TimingConfig, summarize
from deploy.cli.main import main
from deploy.parity.scene_parity import SceneParity
from deploy.report.compare import Comparison, RegressionLimits, compare
from deploy.report.comparison_page import comparison_markdown, comparison_page, comparison_table
from deploy.report.report import assemble
from ifkd.core.errors import DataError
from ifkd.core.timing import TimingSamples

WINDOW = (1.0, 1.01, 0.99, 1.0, 1.02)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    data = parts.dataset(tmp_path_factory.mktemp("compare"))
    return assemble(
        title="Base", evaluations=parts.evaluations(data), benches=[parts.bench()], parities=[parts.parity(data)]
    )


def slower(report, factor, *, index=0, jitter=(1.0,) * 6):
    """Return the report with new samples of one cell: `factor` times as slow, with a jitter of each window."""
    bench = report.benches[0]
    cell = bench.cells[index]
    median = cell.latency.per_batch.p50_ms * 1e6
    windows = [[int(median * factor * one * each) for each in WINDOW] for one in jitter]
    samples, ground = TimingSamples([1], windows), GroundCoverage((96, 96))
    latency = summarize(samples, batch=cell.batch, timing=TimingConfig(), ground=ground)
    cells = list(bench.cells)
    cells[index] = cell.model_copy(update={"latency": latency})
    return report.model_copy(update={"benches": (bench.model_copy(update={"cells": tuple(cells)}),)})


def lower(report, drop):
    found = dict(report.evaluations)
    one = found["distilled student"]
    metrics = one.metrics.model_copy(update={"mean_ap": one.metrics.mean_ap - drop})
    found["distilled student"] = one.model_copy(update={"metrics": metrics})
    return report.model_copy(update={"evaluations": found})


def states(comparison):
    return {row.name: row.values[-1].state for row in comparison.rows}


def test_a_report_equals_itself(base):
    comparison = compare({"a": base, "b": base})
    assert comparison.passed
    assert comparison.regressions == ()
    assert set(states(comparison).values()) <= {"same", "not judged"}
    assert comparison.rows[0].values[0].value == base.evaluations["teacher"].metrics.mean_ap


def test_reports_without_a_comparable_figure_have_no_verdict(base):
    accuracy = base.model_copy(update={"benches": (), "parities": ()})
    other = {
        name: one.model_copy(update={"data": one.data.model_copy(update={"sha256": "0" * 64})})
        for name, one in accuracy.evaluations.items()
    }
    with pytest.raises(DataError, match=r"cannot be compared: got B and A: the annotation files differ"):
        compare({"a": accuracy, "b": accuracy.model_copy(update={"evaluations": other})})
    nothing = accuracy.model_copy(update={"evaluations": {}})
    with pytest.raises(DataError, match="no figure in common"):
        compare({"a": nothing, "b": base})


def test_accuracy_on_data_without_objects_is_not_judged(base):
    empty = dict(base.evaluations)
    one = empty["teacher"]
    empty["teacher"] = one.model_copy(update={"metrics": one.metrics.model_copy(update={"mean_ap": None})})
    comparison = compare({"a": base, "b": base.model_copy(update={"evaluations": empty})})
    assert comparison.passed
    assert states(comparison)["teacher mAP"] == "not judged"
    assert "no labeled object" in comparison_markdown(comparison)


def test_a_drop_of_accuracy_is_a_regression_and_a_gain_is_not(base):
    worse = compare({"a": base, "b": lower(base, 0.02)})
    assert not worse.passed
    assert len(worse.regressions) == 1
    assert "distilled student mAP -0.020" in worse.regressions[0]
    assert states(compare({"a": base, "b": lower(base, -0.02)}))["distilled student mAP"] == "better"
    assert compare({"a": base, "b": lower(base, 0.02)}, RegressionLimits(accuracy_drop=0.03)).passed


def test_accuracy_on_other_data_is_not_judged(base):
    other = lower(base, 0.3)
    found = {
        name: one.model_copy(update={"data": one.data.model_copy(update={"sha256": "9" * 64})})
        for name, one in other.evaluations.items()
    }
    comparison = compare({"a": base, "b": other.model_copy(update={"evaluations": found})})
    assert comparison.passed
    assert states(comparison)["distilled student mAP"] == "not judged"


NAME = "onnxruntime fp32, batch 1 p50"


@pytest.mark.parametrize(
    ("factor", "jitter", "state"),
    [
        (1.0, (1.0,) * 6, "same"),
        (1.3, (1.0,) * 6, "regression"),
        (0.7, (1.0,) * 6, "better"),
        (1.08, (1.0, 0.98, 1.0, 0.95, 1.0, 1.0), "same"),  # slower in the middle, and within what windows scatter_chart
    ],
)
def test_a_latency_is_worse_only_beyond_the_spread_of_its_windows(base, factor, jitter, state):
    steady = slower(base, 1.0)
    assert states(compare({"a": steady, "b": slower(base, factor, jitter=jitter)}))[NAME] == state


def test_an_unstable_latency_is_shown_and_not_judged(base):
    shaky = slower(base, 2.0, jitter=(1, 1, 1, 1, 2, 1))
    comparison = compare({"a": slower(base, 1.0), "b": shaky})
    row = next(row for row in comparison.rows if row.name == NAME)
    assert row.values[1].state == "not judged"
    assert "unstable" in row.values[1].reason
    assert comparison.passed


def test_another_device_is_not_judged(base):
    slow = slower(base, 3.0)
    bench = slow.benches[0]
    engine = bench.cells[0].engine.model_copy(update={"device": "NVIDIA H100"})
    cells = (bench.cells[0].model_copy(update={"engine": engine}), *bench.cells[1:])
    other = slow.model_copy(update={"benches": (bench.model_copy(update={"cells": cells}),)})
    comparison = compare({"a": slower(base, 1.0), "b": other})
    row = next(row for row in comparison.rows if row.name == NAME)
    assert (row.values[1].state, row.values[1].reason) == ("not judged", "the devices differ")


def test_missing_figures_and_lost_parity_are_regressions(base):
    parity = base.parities[0]
    failed = parity.cells[1].model_copy(update={"passed": False})
    lost = base.model_copy(
        update={
            "parities": (parity.model_copy(update={"cells": (parity.cells[0], failed), "passed": False}),),
            "evaluations": {"teacher": base.evaluations["teacher"]},
        }
    )
    comparison = compare({"a": base, "b": lost})
    assert any("parity onnxruntime fp16 passed before" in words for words in comparison.regressions)
    assert any("distilled student mAP missing" in words for words in comparison.regressions)


def test_three_reports_stand_side_by_side(base):
    comparison = compare({"a": base, "b": lower(base, 0.02), "c": base})
    assert {len(row.values) for row in comparison.rows} == {3}
    assert all(words.startswith("B: ") for words in comparison.regressions)
    assert comparison_table(comparison).headings[2:5] == ("A", "B", "C")
    markdown = comparison_markdown(comparison)
    assert "❌ **1 regression.**" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in lines if "Report" not in line and "`" not in line}) == 2


def test_the_command_fails_for_a_regression(base, tmp_path, capsys):
    for name, report in (("a", base), ("b", lower(base, 0.02))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report.model_dump_json())
    a, b = str(tmp_path / "a"), str(tmp_path / "b" / "report.json")
    out = tmp_path / "out"
    assert main(["report", "compare", a, b, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "1 regression" in printed.out
    assert "Worse than the baseline" in printed.err
    assert json.loads((out / "comparison.json").read_text())["passed"] is False
    assert (out / "comparison.md").read_text() == printed.out.removesuffix("\n")
    page = (out / "comparison.html").read_text()
    assert "1 regression." in page
    assert "distilled student mAP -0.020, an AP may drop by 0.005" in page
    assert main(["report", "compare", b, a]) == 0
    assert "No regression" in capsys.readouterr().out
    (tmp_path / "limits.toml").write_text("accuracy_drop = 0.05\n")
    assert main(["report", "compare", a, b, "--limits", str(tmp_path / "limits.toml")]) == 0


@pytest.mark.parametrize(
    "words", [["compare"], ["compare", "a"], ["compare", "a", "a"], ["a", "b"], ["compare", "a", "b"]]
)
def test_too_few_or_missing_reports_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


def test_the_reference_and_the_bundles_own_network_are_two_rows(base):
    names = {row.name for row in compare({"a": base, "b": base}).rows}
    assert {"torch fp32, batch 1 p50", "reference torch fp32, batch 1 p50"} <= names


def test_the_page_has_all_figures_and_no_external_resource(base):
    comparison = compare({"a": base, "b<": lower(base, 0.02)})
    text = comparison_page(comparison)
    assert text == comparison_page(Comparison.model_validate_json(comparison.model_dump_json()))
    assert not re.search(r"https?:|//\w+\.|@import|url\(|<script", text)
    assert "b&lt;" in text
    for row in comparison.rows:
        assert f'<th scope="row">{row.name}' in text
        assert all(one.text in text for one in row.values)
    assert text.count('class="badge failed"') == 1  # the verdict's badge takes its tone from its card


def test_a_comparison_of_reports_without_benches_has_no_empty_section(base):
    bare = base.model_copy(update={"benches": ()})
    text = comparison_page(compare({"a": bare, "b": bare}))
    assert 'id="accuracy"' in text
    assert 'id="latency"' not in text
    assert "No regression." in text


def with_parity(report, **changes):
    """Return the report with another result of its first engine, beside those it has."""
    parity = report.parities[0]
    cells = (parity.cells[0].model_copy(update=changes),)
    return report.model_copy(update={"parities": (parity.model_copy(update={"cells": cells}), *report.parities)})


def test_a_parity_that_failed_once_is_lost_whatever_the_order(base):
    comparison = compare({"a": base, "b": with_parity(base, passed=False)})
    assert (
        f"B: parity {base.parities[0].cells[0].name} passed before, parity must not be lost" in comparison.regressions
    )


def test_a_parity_lost_on_a_scene_is_a_regression(base):
    parity = base.parities[0]
    fields = parity.cells[0].model_dump(include=set(SceneParity.model_fields))
    scene = SceneParity(**fields | {"scene": "harbor.tif", "size_px": (64, 64), "passed": True})

    def with_scene(*, passed):
        scenes = (scene.model_copy(update={"passed": passed}),)
        return base.model_copy(update={"parities": (parity.model_copy(update={"scenes": scenes}),)})

    comparison = compare({"a": with_scene(passed=True), "b": with_scene(passed=False)})
    assert any("on harbor.tif passed before" in one for one in comparison.regressions)


def on_device(bench, device):
    """Return a bench with its cells that ran, on another device."""
    ran = [cell for cell in bench.cells if cell.engine is not None]
    engines = [cell.engine.model_copy(update={"device": device}) for cell in ran]
    cells = [cell.model_copy(update={"engine": engine}) for cell, engine in zip(ran, engines, strict=True)]
    return bench.model_copy(update={"cells": tuple(cells)})


def test_benches_of_two_devices_are_compared_each_with_its_own(base):
    first, second = (on_device(base.benches[0], device) for device in ("CPU", "GPU"))
    slow = slower(base.model_copy(update={"benches": (first,)}), 3.0).benches[0]
    before = base.model_copy(update={"benches": (first, second)})
    comparison = compare({"a": before, "b": before.model_copy(update={"benches": (slow, second)})})
    assert [one.partition(" p50")[0] for one in comparison.regressions if "p50" in one] == [
        f"B: {first.bundle.name} on CPU: {first.cells[0].name}, batch {first.cells[0].batch}"
    ]


def test_another_bench_beside_that_of_the_baseline_is_no_regression(base):
    first, second = (on_device(base.benches[0], device) for device in ("CPU", "GPU"))
    before, after = (base.model_copy(update={"benches": some}) for some in ((first,), (first, second)))
    assert compare({"a": before, "b": after}).passed


def test_more_reports_than_letters_are_compared(base):
    comparison = compare({str(number): base for number in range(28)})
    assert [one.letter for one in comparison.reports[-3:]] == ["Z", "A2", "B2"]
