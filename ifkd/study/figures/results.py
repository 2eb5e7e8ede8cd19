"""Figures of a study's results: mAP of each variant and seed, and Figure 5 of the paper, mAP by alpha or beta."""

import statistics
from pathlib import Path
from typing import Any

from ifkd.study.figures import plotting
from ifkd.study.figures.plotting import OKABE_ITO, FigureData, Row
from ifkd.study.study_record import TEACHER, EvaluatedRun, StudyRecord, map_spread
from ifkd.study.variants import PLAIN

COMPARISON, SENSITIVITY = "comparison", "figure5-sensitivity"
ROW_INCHES = 0.21
SYMBOLS = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "\N{GREEK SMALL LETTER BETA}"}


def comparison_data(record: StudyRecord) -> FigureData:
    """Return mAP, AP50 and AP75 in points of each finished run: the teacher, then variants by decreasing mean mAP."""
    runs: list[tuple[str, int, EvaluatedRun | None]] = [(TEACHER, record.seeds[0], record.teacher)]
    for label in labels_by_map(record):
        runs += [(label, seed, run) for seed, run in zip(record.seeds, record.students[label], strict=True)]
    names = ("mean_ap", "ap50", "ap75")
    rows: list[Row] = [
        (label, seed, *(100 * getattr(run.metrics, name) for name in names)) for label, seed, run in runs if run
    ]
    return FigureData(("variant", "seed", "map_points", "ap50_points", "ap75_points"), rows)


def labels_by_map(record: StudyRecord) -> list[str]:
    """Return the variants with finished runs by decreasing mean mAP."""
    means = {label: spread.mean for label in record.students if (spread := map_spread(record.finished(label)))}
    return sorted(means, key=lambda label: -means[label])


def draw_comparison(record: StudyRecord, folder: Path) -> list[Path]:
    """Write the figure: a row per variant with a dot per seed and a bar at the mean; the teacher as a line."""
    labels = labels_by_map(record)
    with plotting.subplots(plotting.COLUMN_INCHES, 0.75 + ROW_INCHES * len(labels)) as (figure, grid):
        axes = grid[0, 0]
        for row, label in enumerate(labels):
            color = OKABE_ITO[4 if "ifkd" in label else 0]
            values = [100 * run.mean_ap for run in record.finished(label)]
            mean = statistics.fmean(values)
            axes.plot([mean, mean], [row - 0.32, row + 0.32], color=color, linewidth=2)
            axes.plot(values, [row] * len(values), "o", color=color, markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="mAP on the test split, points: each seed, and the mean")
        axes.tick_params(axis="y", length=0)
        _draw_baselines(figure, axes, record, map_axis="x")
        return plotting.save_figure(figure, comparison_data(record), folder, COMPARISON)


def sensitivity_data(record: StudyRecord) -> FigureData:
    """Return mAP in points of each finished run: teacher, plain student, and each value of the parameter."""
    rows: list[Row] = [("teacher", "", record.seeds[0], 100 * record.teacher.mean_ap)]
    for label, runs in record.students.items():
        series = "student" if label == PLAIN.label else str(record.parameter)
        value, finished = record.parameter_values.get(label, ""), zip(record.seeds, runs, strict=True)
        rows += [(series, value, seed, 100 * run.mean_ap) for seed, run in finished if run is not None]
    return FigureData(("series", "value", "seed", "map_points"), rows)


def draw_sensitivity(record: StudyRecord, folder: Path) -> list[Path]:
    """Write the figure of a sweep: mean and standard deviation over seeds; teacher and plain student as lines."""
    found = {value: map_spread(record.finished(label)) for label, value in record.parameter_values.items()}
    spreads = {value: spread for value, spread in sorted(found.items()) if spread is not None}
    with plotting.subplots(plotting.COLUMN_INCHES, 2.5) as (figure, grid):
        axes = grid[0, 0]
        means, errors = [one.mean for one in spreads.values()], [one.std or 0.0 for one in spreads.values()]
        style = {"color": OKABE_ITO[0], "marker": "o", "markersize": 4, "capsize": 2.5, "elinewidth": 1}
        axes.errorbar(list(spreads), means, yerr=errors, label="IFKD", **style)
        if (plain := map_spread(record.finished(PLAIN.label))) and plain.std:
            low, high = plain.mean - plain.std, plain.mean + plain.std
            axes.axhspan(low, high, color=OKABE_ITO[1], alpha=0.16, linewidth=0)
        axes.set(xlabel=SYMBOLS[str(record.parameter)], ylabel="mAP, points")
        _draw_baselines(figure, axes, record, map_axis="y")
        return plotting.save_figure(figure, sensitivity_data(record), folder, f"{SENSITIVITY}-{record.parameter}")


def _draw_baselines(figure: Any, axes: Any, record: StudyRecord, *, map_axis: str) -> None:
    """Draw mAP of the teacher (dashed) and of the plain student (dotted) as lines; add the grid and the legend."""
    draw = axes.axhline if map_axis == "y" else axes.axvline
    teacher = 100 * record.teacher.mean_ap
    draw(teacher, label="teacher", color=OKABE_ITO[7], linestyle=(0, (5, 2)), linewidth=1)
    if plain := map_spread(record.finished(PLAIN.label)):
        draw(plain.mean, label="plain student", color=OKABE_ITO[1], linestyle=(0, (1, 1.2)), linewidth=1.4)
    axes.grid(axis=map_axis, linewidth=0.4, color="0.88")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, handlelength=2.2)
