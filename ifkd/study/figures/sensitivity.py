"""Figure 5 of the paper: mAP against alpha or beta."""

from pathlib import Path

from ifkd.study.figures.drawing import COLUMN_INCHES, OKABE_ITO, Numbers, save, sheet
from ifkd.study.study_record import StudyRecord, mean_ap
from ifkd.study.variant import PLAIN

NAME = "figure5-sensitivity"
SIGNS = {"alpha": "\N{GREEK SMALL LETTER ALPHA}", "beta": "\N{GREEK SMALL LETTER BETA}"}


def sensitivity_numbers(record: StudyRecord) -> Numbers:
    """Return mAP, points, of every run: the teacher's, the plain student's and those of the parameter's values."""
    rows: list[tuple[str | int | float, ...]] = [("teacher", "", record.seeds[0], 100 * record.teacher.metrics.mean_ap)]
    for label, runs in record.students.items():
        value = record.values.get(label, "")
        rows += [
            ("student" if label == PLAIN.label else str(record.parameter), value, seed, 100 * run.metrics.mean_ap)
            for seed, run in zip(record.seeds, runs, strict=True)
            if run is not None
        ]
    return Numbers(("series", "value", "seed", "map_points"), rows)


def draw_sensitivity(record: StudyRecord, folder: Path) -> list[Path]:
    """Write the figure of a sweep: the mean over seeds with its deviation; teacher and plain student as lines.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    found = {value: mean for label, value in record.values.items() if (mean := mean_ap(record.finished(label)))}
    values = sorted(found)
    with sheet(COLUMN_INCHES, 2.5) as (figure, grid):
        axes = grid[0, 0]
        axes.errorbar(
            values,
            [found[value].mean for value in values],
            yerr=[found[value].deviation or 0.0 for value in values],
            color=OKABE_ITO[0],
            marker="o",
            markersize=4,
            capsize=2.5,
            elinewidth=1,
            label="IFKD",
        )
        axes.axhline(
            100 * record.teacher.metrics.mean_ap,
            color=OKABE_ITO[7],
            linestyle=(0, (5, 2)),
            linewidth=1,
            label="teacher",
        )
        if plain := mean_ap(record.finished(PLAIN.label)):
            axes.axhline(plain.mean, color=OKABE_ITO[1], linestyle=(0, (1, 1.2)), linewidth=1.4, label="student")
            if plain.deviation:
                low, high = plain.mean - plain.deviation, plain.mean + plain.deviation
                axes.axhspan(low, high, color=OKABE_ITO[1], alpha=0.16, linewidth=0)
        axes.set_xlabel(SIGNS[str(record.parameter)])
        axes.set_ylabel("mAP, points")
        axes.grid(axis="y", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=3, handlelength=2.2)
        return save(figure, sensitivity_numbers(record), folder, f"{NAME}-{record.parameter}")
