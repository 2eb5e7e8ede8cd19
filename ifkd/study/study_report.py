"""Write a study's results as study.json, study.md and study.html."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from ifkd.core.files import write_json, write_text
from ifkd.core.html.chart import Series, bar_chart
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.svg import Chart
from ifkd.core.html.table import Table
from ifkd.study.learning_curves import LearningCurves
from ifkd.study.paper_tables import paper_metrics
from ifkd.study.study_charts import loss_chart, sweep_chart, validation_chart
from ifkd.study.study_record import (
    RECORD,
    TEACHER,
    EvaluatedRun,
    SeedSpread,
    StudyRecord,
    map_difference,
    map_spread,
    seed_spread,
)
from ifkd.study.variants import PLAIN

MARKDOWN, PAGE = "study.md", "study.html"
METRICS = ("mean_ap", "ap50", "ap75")
ABSENT = "–"


def study_table(record: StudyRecord) -> Table:
    """Return one row for the teacher, the plain student and each variant, in the order of the study."""
    partial = bool(record.unfinished)
    headings = ["", "mAP", "AP50", "AP75", "gain", "95 % interval", "to teacher", "minutes per run"]
    cells = [f"{100 * getattr(record.teacher.metrics, name):.1f}" for name in METRICS]
    rows = [[TEACHER, *cells, "", "", "", f"{record.teacher.train_seconds / 60:.1f}"]]
    for label in record.students:
        runs = record.finished(label)
        rows.append([label, *(_student_cells(record, label, runs) if runs else [ABSENT] * 7)])
    if partial:
        headings.append("runs")
        counts = [f"{len(record.finished(label))} of {len(runs)}" for label, runs in record.students.items()]
        rows = [[*row, count] for row, count in zip(rows, ["1 of 1", *counts], strict=True)]
    if record.dataset is not None:
        headings.append("paper")
        rows = [[*row, paper_metrics(row[0], record.dataset)] for row in rows]
    seeds = f"{len(record.seeds)} seeds" if len(record.seeds) > 1 else "one seed, so without a spread"
    caption = f"{record.recipe}: test split, points; {seeds}. Gains over the plain student are paired by seed."
    if partial:
        caption += " Some runs are not finished, so the means are over different seeds."
    return _table(caption, headings, rows)


def _table(caption: str, headings: list[str], rows: list[list[str]]) -> Table:
    """Return a table whose first column is text and whose other columns are numbers."""
    return Table(caption, tuple(headings), (False, *[True] * (len(headings) - 1)), tuple(map(tuple, rows)))


def _student_cells(record: StudyRecord, label: str, runs: list[EvaluatedRun]) -> list[str]:
    mean_ap, ap50, ap75 = (seed_spread(getattr(run.metrics, name) for run in runs) for name in METRICS)
    gain = ["", ""] if label == PLAIN.label else _gain_cells(map_difference(record, label))
    to_teacher = f"{mean_ap.mean - 100 * record.teacher.mean_ap:+.1f}"
    minutes = f"{statistics.fmean(run.train_seconds for run in runs) / 60:.1f}"
    return [f"{mean_ap}", f"{ap50}", f"{ap75}", *gain, to_teacher, minutes]


def _gain_cells(gain: SeedSpread | None) -> list[str]:
    """Return the mean of paired gains, and their confidence interval."""
    if gain is None:
        return [ABSENT, ABSENT]
    low, high = gain.interval
    return [f"{gain.mean:+.1f}", ABSENT if gain.std is None else f"{low:+.1f} to {high:+.1f}"]


def class_tables(record: StudyRecord) -> list[Table]:
    """Return AP and AP50 of each class in the test split, as means over seeds, for the teacher and each variant."""
    columns = {TEACHER: [record.teacher], **{label: record.finished(label) for label in record.students}}
    columns = {label: runs for label, runs in columns.items() if runs}

    def mean(class_name: str, metric: str, runs: list[EvaluatedRun]) -> str:
        return f"{seed_spread(getattr(run.metrics.per_class[class_name], metric) for run in runs).mean:.1f}"

    tables = []
    for name, metric in {"AP": "mean_ap", "AP50": "ap50"}.items():
        rows = [
            [class_name, str(metrics.objects), *(mean(class_name, metric, runs) for runs in columns.values())]
            for class_name, metrics in record.teacher.metrics.per_class.items()
            if metrics.objects
        ]
        caption = f"{name} of each class in the test split, points, mean over seeds"
        tables.append(_table(caption, ["class", "objects", *columns], rows))
    return tables


def write_study(record: StudyRecord, folder: Path, curves: Mapping[str, LearningCurves] | None = None) -> list[Path]:
    """Write study.json, study.md and study.html into `folder`, and return their paths; `curves` are by label.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder is not writable.
    """
    curves = curves or {}
    has_line = any(len(one.validation.x) > 1 for one in curves.values())
    losses = {label: one.losses for label, one in curves.items() if any(c.has_positive for c in one.losses.values())}
    table, classes = study_table(record), class_tables(record)
    template = jinja_environment("ifkd.study", need="The page of `ifkd study`").get_template("study.html.j2")
    page = template.render(
        record=record,
        results_table=table,
        class_tables=classes,
        result_charts=_result_charts(record),
        validation_charts=[validation_chart(curves)] if has_line else [],
        loss_charts=[loss_chart(number, label, terms) for number, (label, terms) in enumerate(losses.items())],
        style=style_sheet(),
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_text(folder / MARKDOWN, _markdown(record, [table, *classes]))
    write_text(folder / PAGE, page)
    return [folder / name for name in (RECORD, MARKDOWN, PAGE)]


def _result_charts(record: StudyRecord) -> list[Chart]:
    """Return mAP of all variants as bars, or by the parameter of a sweep; no chart without finished runs."""
    means = {label: spread.mean for label in record.students if (spread := map_spread(record.finished(label)))}
    if not means:
        return []
    if any(label in means for label in record.parameter_values):
        return [sweep_chart(record)]
    means = {TEACHER: 100 * record.teacher.mean_ap, **means}
    series, title = [Series("mAP", tuple(means.values()))], "mAP on the test split, mean over seeds"
    maximum = max(means.values())
    return [bar_chart("map", title, tuple(means), series, maximum=maximum, x_label="mAP, points", decimals=1)]


def _markdown(record: StudyRecord, tables: list[Table]) -> str:
    parts = [f"# {record.title}", *(f"{table.caption}\n\n{table.markdown()}" for table in tables)]
    if record.unfinished:
        parts.insert(1, f"Not finished: {', '.join(record.unfinished)}.")
    if record.verdict:
        parts.insert(1, "\n".join(f"- {sentence}" for sentence in record.verdict))
    conditions = [f"- {name}: {text}" for name, text in record.conditions.items()]
    conditions += [f"- trained on: {machine} ({count} runs)" for machine, count in record.machines.items()]
    if conditions:
        parts += ["Conditions", "\n".join(conditions)]
    return "\n\n".join([*parts, f"Written by {record.producer}."]) + "\n"
