"""Figure 5 of the paper: mAP by alpha or beta."""

from pathlib import Path

from ifkd.study.figures import plotting
from ifkd.study.figures.plotting import FigureData, Row
from ifkd.study.study_record import StudyRecord, map_spread
from ifkd.study.variants import PLAIN

NAME = "figure5-sensitivity"
SYMBOLS = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "\N{GREEK SMALL LETTER BETA}"}


def sensitivity_data(record: StudyRecord) -> FigureData:
    """Return mAP in points of each finished run: teacher, plain student, and each value of the parameter."""
    rows: list[Row] = [("teacher", "", record.seeds[0], 100 * record.teacher.metrics.mean_ap)]
    for label, runs in record.students.items():
        series = "student" if label == PLAIN.label else str(record.parameter)
        rows += [
            (series, record.parameter_values.get(label, ""), seed, 100 * run.metrics.mean_ap)
            for seed, run in zip(record.seeds, runs, strict=True)
            if run is not None
        ]
    return FigureData(("series", "value", "seed", "map_points"), rows)


def draw_sensitivity(record: StudyRecord, folder: Path) -> list[Path]:
    """Write the figure of a sweep: mean and standard deviation over seeds; teacher and plain student as lines."""
    found = {value: map_spread(record.finished(label)) for label, value in record.parameter_values.items()}
    spreads = {value: spread for value, spread in sorted(found.items()) if spread is not None}
    with plotting.subplots(plotting.COLUMN_INCHES, 2.5) as (figure, grid):
        axes = grid[0, 0]
        means, errors = [one.mean for one in spreads.values()], [one.std or 0.0 for one in spreads.values()]
        style = {"color": plotting.OKABE_ITO[0], "marker": "o", "markersize": 4, "capsize": 2.5, "elinewidth": 1}
        axes.errorbar(list(spreads), means, yerr=errors, label="IFKD", **style)
        plotting.draw_baseline(axes, 100 * record.teacher.metrics.mean_ap, "teacher", horizontal=True)
        if plain := map_spread(record.finished(PLAIN.label)):
            plotting.draw_baseline(axes, plain.mean, "plain student", horizontal=True)
            if plain.std:
                low, high = plain.mean - plain.std, plain.mean + plain.std
                axes.axhspan(low, high, color=plotting.OKABE_ITO[1], alpha=0.16, linewidth=0)
        axes.set(xlabel=SYMBOLS[str(record.parameter)], ylabel="mAP, points")
        axes.grid(axis="y", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.2)
        return plotting.save_figure(figure, sensitivity_data(record), folder, f"{NAME}-{record.parameter}")
