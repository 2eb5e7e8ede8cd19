"""What a study found: study.json, and the same as a table, as Markdown and as a page."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from ifkd import __version__
from ifkd.config import Schema
from ifkd.files import write_json, write_text
from ifkd.pages.chart import Series, bars
from ifkd.pages.document import environment, style
from ifkd.pages.table import Table
from ifkd.study.paper import DataSet, figures
from ifkd.study.study import Outcome
from ifkd.study.variant import PLAIN

RECORD, MARKDOWN, PAGE = "study.json", "study.md", "study.html"


class StudyRecord(Schema):
    """A study, as study.json holds it."""

    title: str
    producer: str = f"ifkd {__version__}"
    recipe: str
    """Its name."""
    recipe_toml: str
    """The recipe that all runs share."""
    data_set: DataSet | None = None
    """When it is one of the paper's."""
    seeds: tuple[int, ...]
    teacher: Outcome
    students: dict[str, tuple[Outcome, ...]]
    """By variant, one for each seed in order."""


class Spread(Schema):
    """Mean and standard deviation over seeds; one seed has no deviation."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """Return both as points, with the sign of nothing."""
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of shares in points of a hundred; the deviation is that of a sample."""
    points = [100 * value for value in values]
    return Spread(mean=statistics.fmean(points), deviation=statistics.stdev(points) if len(points) > 1 else None)


def gains(record: StudyRecord, label: str) -> Spread:
    """Return a variant's gain in mAP over the plain student, paired by seed, in points."""
    pairs = zip(record.students[label], record.students[PLAIN.label], strict=True)
    return spread([own.metrics.mean_ap - plain.metrics.mean_ap for own, plain in pairs])


def study_table(record: StudyRecord) -> Table:
    """Return one row for the teacher, the plain student and every variant, in the order they were asked for."""
    paper = record.data_set is not None
    headings = ("", "mAP", "AP50", "AP75", "gain", "to teacher", "minutes a run", *(["paper"] if paper else []))
    teacher = record.teacher.metrics
    rows = [
        ("teacher", *(f"{100 * value:.1f}" for value in (teacher.mean_ap, teacher.ap50, teacher.ap75)), "", "",
         f"{record.teacher.seconds / 60:.1f}", *([figures("teacher", record.data_set)] if paper else []))
    ]  # fmt: skip
    for label, runs in record.students.items():
        metrics = [run.metrics for run in runs]
        mean_ap = spread([one.mean_ap for one in metrics])
        gain = gains(record, label)
        rows.append(
            (
                label,
                str(mean_ap),
                str(spread([one.ap50 for one in metrics])),
                str(spread([one.ap75 for one in metrics])),
                "" if label == PLAIN.label else f"{'+' if gain.mean >= 0 else ''}{gain}",
                f"{mean_ap.mean - 100 * teacher.mean_ap:+.1f}",
                f"{statistics.fmean(run.seconds for run in runs) / 60:.1f}",
                *([figures(label, record.data_set)] if paper else []),
            )
        )
    seeds = f"{len(record.seeds)} seeds" if len(record.seeds) > 1 else "one seed, so without a spread"
    caption = f"{record.recipe}: test split, points; {seeds}. Gains are over the student of the same seed."
    return Table(caption, headings, (False, *[True] * (len(headings) - 1)), tuple(rows))


def class_table(record: StudyRecord) -> Table:
    """Return AP50 of each class, the mean over seeds, for the teacher and every variant."""
    classes = tuple(name for name, found in record.teacher.metrics.per_class.items() if found.ap50 is not None)
    rows = []
    for label, runs in {"teacher": (record.teacher,), **record.students}.items():
        found = ([run.metrics.per_class[name].ap50 or 0.0 for run in runs] for name in classes)
        rows.append((label, *(f"{spread(values).mean:.1f}" for values in found)))
    headings = ("", *classes)
    return Table(
        "AP50 of the classes that occur, points, mean over seeds",
        headings,
        (False, *[True] * len(classes)),
        tuple(rows),
    )


def write_study(record: StudyRecord, folder: Path) -> list[Path]:
    """Write study.json, study.md and study.html into `folder`, and return their paths.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder cannot be written.
    """
    tables = [study_table(record), class_table(record)]
    means = tuple(spread([run.metrics.mean_ap for run in runs]).mean for runs in record.students.values())
    chart = bars(
        "map",
        "mAP on the test split, mean over seeds",
        tuple(record.students),
        [Series("mAP", means)],
        most=max(means),
        x_label="mAP, points",
        decimals=1,
    )
    page = (
        environment("ifkd.study", need="The page of `ifkd study`")
        .get_template("study.html.j2")
        .render(record=record, tables=tables, charts=[chart], style=style())
    )
    told = [f"# {record.title}", *(f"{one.caption}\n\n{one.markdown()}" for one in tables)]
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_text(folder / MARKDOWN, "\n\n".join(told) + "\n")
    write_text(folder / PAGE, page)
    return [folder / name for name in (RECORD, MARKDOWN, PAGE)]
