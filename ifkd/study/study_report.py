"""What a study found as tables and charts: study.json, study.md and study.html."""

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from ifkd.core.files import write_json, write_text
from ifkd.core.html.chart import Chart, Series, bars
from ifkd.core.html.document import environment, style
from ifkd.core.html.table import Table
from ifkd.data.metrics import ClassMetrics
from ifkd.study.learning_curves import Learning
from ifkd.study.paper_tables import figures
from ifkd.study.study_charts import loss_chart, sweep_chart, validation_chart
from ifkd.study.study_record import RECORD, TEACHER, Outcome, SeedSpread, StudyRecord, gains, mean_ap, seed_spread
from ifkd.study.variant import PLAIN

MARKDOWN, PAGE = "study.md", "study.html"
ABSENT = "–"


def study_table(record: StudyRecord) -> Table:
    """Return one row for the teacher, the plain student and every variant, in the order they were asked for."""
    paper = record.data_set is not None
    partial = bool(record.missing)
    headings: tuple[str, ...] = ("", "mAP", "AP50", "AP75", "gain", "to teacher", "minutes a run")
    headings += (("runs",) if partial else ()) + (("paper",) if paper else ())
    teacher = record.teacher.metrics
    cells = [f"{100 * value:.1f}" for value in (teacher.mean_ap, teacher.ap50, teacher.ap75)]
    cells += ["", "", f"{record.teacher.seconds / 60:.1f}"]
    cells += ["1 of 1"] if partial else []
    rows = [(TEACHER, *cells, *([figures(TEACHER, record.data_set)] if paper else []))]
    for label, asked in record.students.items():
        runs = record.finished(label)
        cells = _student_cells(record, label, runs) if runs else [ABSENT] * 6
        cells += [f"{len(runs)} of {len(asked)}"] if partial else []
        rows.append((label, *cells, *([figures(label, record.data_set)] if paper else [])))
    seeds = f"{len(record.seeds)} seeds" if len(record.seeds) > 1 else "one seed, so without a spread"
    caption = f"{record.recipe}: test split, points; {seeds}. Gains are over the student of the same seed."
    if partial:
        caption += " Not all runs are finished, so that means are not of the same seeds."
    return Table(caption, headings, (False, *[True] * (len(headings) - 1)), tuple(rows))


def _student_cells(record: StudyRecord, label: str, runs: list[Outcome]) -> list[str]:
    metrics = [run.metrics for run in runs]
    mean, gain = seed_spread(one.mean_ap for one in metrics), gains(record, label)
    return [
        str(mean),
        str(seed_spread(one.ap50 for one in metrics)),
        str(seed_spread(one.ap75 for one in metrics)),
        "" if label == PLAIN.label else _signed(gain),
        f"{mean.mean - 100 * record.teacher.metrics.mean_ap:+.1f}",
        f"{statistics.fmean(run.seconds for run in runs) / 60:.1f}",
    ]


def _signed(gain: SeedSpread | None) -> str:
    return ABSENT if gain is None else f"{'+' if gain.mean >= 0 else ''}{gain}"


def class_tables(record: StudyRecord) -> list[Table]:
    """Return AP and AP50 of each class that occurs, the mean over seeds, for the teacher and every variant."""
    return [
        _class_table(record, "AP", lambda found: found.mean_ap),
        _class_table(record, "AP50", lambda found: found.ap50),
    ]


def _class_table(record: StudyRecord, name: str, figure: Callable[[ClassMetrics], float | None]) -> Table:
    columns = {TEACHER: [record.teacher], **{label: record.finished(label) for label in record.students}}
    columns = {label: runs for label, runs in columns.items() if runs}
    occurring = {label: found for label, found in record.teacher.metrics.per_class.items() if found.objects}

    def mean(label: str, runs: list[Outcome]) -> str:
        return f"{seed_spread(figure(run.metrics.per_class[label]) or 0.0 for run in runs).mean:.1f}"

    rows = tuple(
        (label, str(found.objects), *(mean(label, runs) for runs in columns.values()))
        for label, found in occurring.items()
    )
    headings = ("class", "objects", *columns)
    return Table(
        f"{name} of the classes that occur, points, mean over seeds",
        headings,
        (False, *[True] * (len(headings) - 1)),
        rows,
    )


def write_study(record: StudyRecord, folder: Path, learned: Mapping[str, Learning] | None = None) -> list[Path]:
    """Write study.json, study.md and study.html into `folder`, and return their paths.

    Args:
        record: What was found.
        folder: Where.
        learned: How the teacher and the variants learned, as far as their runs tell it.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder cannot be written.
    """
    learned = learned or {}
    lines = {label: one for label, one in learned.items() if one.validation.is_line}
    losses = {
        label: one.losses for label, one in learned.items() if any(curve.is_felt for curve in one.losses.values())
    }
    table, classes = study_table(record), class_tables(record)
    page = (
        environment("ifkd.study", need="The page of `ifkd study`")
        .get_template("study.html.j2")
        .render(
            record=record,
            table_of_all=table,
            class_tables=classes,
            charts=_charts(record),
            learning=[validation_chart(lines)] if lines else [],
            losses=[loss_chart(number, label, terms) for number, (label, terms) in enumerate(losses.items())],
            style=style(),
        )
    )
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_text(folder / MARKDOWN, _markdown(record, [table, *classes]))
    write_text(folder / PAGE, page)
    return [folder / name for name in (RECORD, MARKDOWN, PAGE)]


def _charts(record: StudyRecord) -> list[Chart]:
    """Return mAP of all variants as bars, or against the parameter of a sweep."""
    means = {label: mean.mean for label in record.students if (mean := mean_ap(record.finished(label)))}
    if not means:
        return []
    if any(label in means for label in record.values):
        return [sweep_chart(record)]
    means = {TEACHER: 100 * record.teacher.metrics.mean_ap, **means}
    series = [Series("mAP", tuple(means.values()))]
    title = "mAP on the test split, mean over seeds"
    return [bars("map", title, tuple(means), series, most=max(means.values()), x_label="mAP, points", decimals=1)]


def _markdown(record: StudyRecord, tables: list[Table]) -> str:
    parts = [f"# {record.title}", *(f"{one.caption}\n\n{one.markdown()}" for one in tables)]
    if record.missing:
        parts.insert(1, f"Not finished: {', '.join(record.missing)}.")
    conditions = [f"- {name}: {words}" for name, words in record.conditions.items()]
    conditions += [f"- trained on: {name} ({count} runs)" for name, count in record.machines.items()]
    if conditions:
        parts += ["What was run", "\n".join(conditions)]
    return "\n\n".join([*parts, f"Written by {record.producer}."]) + "\n"
