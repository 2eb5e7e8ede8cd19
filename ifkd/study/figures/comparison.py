"""The variants of a comparison or an ablation beside each other: mAP on the test split, every seed."""

from pathlib import Path

from ifkd.study.figures.drawing import COLUMN_INCHES, OKABE_ITO, Numbers, save, sheet
from ifkd.study.study_record import TEACHER, Outcome, StudyRecord, mean_ap
from ifkd.study.variant import PLAIN

NAME = "comparison"
ROW_INCHES = 0.21
OURS, OTHERS = OKABE_ITO[4], OKABE_ITO[0]


def comparison_numbers(record: StudyRecord) -> Numbers:
    """Return mAP, AP50 and AP75, points, of every finished run; the teacher's first, then the highest mean first."""
    rows: list[tuple[str | int | float, ...]] = [(TEACHER, record.seeds[0], *_points(record.teacher))]
    rows += [
        (label, seed, *_points(run))
        for label in ranked(record)
        for seed, run in zip(record.seeds, record.students[label], strict=True)
        if run is not None
    ]
    return Numbers(("variant", "seed", "map_points", "ap50_points", "ap75_points"), rows)


def ranked(record: StudyRecord) -> list[str]:
    """Return the variants that have a finished run, the highest mean mAP first."""
    means = {label: mean.mean for label in record.students if (mean := mean_ap(record.finished(label)))}
    return sorted(means, key=lambda label: -means[label])


def draw_comparison(record: StudyRecord, folder: Path) -> list[Path]:
    """Write the figure: a row for each variant, a dot for each seed, a bar at their mean; the teacher as a line.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    labels = ranked(record)
    with sheet(COLUMN_INCHES, 0.75 + ROW_INCHES * len(labels)) as (figure, grid):
        axes = grid[0, 0]
        for row, label in enumerate(labels):
            runs = record.finished(label)
            color = OURS if "ifkd" in label else OTHERS
            values = [100 * run.metrics.mean_ap for run in runs]
            mean = sum(values) / len(values)
            axes.plot([mean, mean], [row - 0.32, row + 0.32], color=color, linewidth=2)
            axes.plot(values, [row] * len(values), "o", color=color, markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.axvline(
            100 * record.teacher.metrics.mean_ap,
            color=OKABE_ITO[7],
            linestyle=(0, (5, 2)),
            linewidth=1,
            label="teacher",
        )
        if plain := mean_ap(record.finished(PLAIN.label) if PLAIN.label in record.students else []):
            axes.axvline(plain.mean, color=OKABE_ITO[1], linestyle=(0, (1, 1.2)), linewidth=1.4, label="plain student")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("mAP on the test split, points: each seed, and their mean")
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=2, handlelength=2.2)
        return save(figure, comparison_numbers(record), folder, NAME)


def _points(run: Outcome) -> tuple[float, float, float]:
    found = run.metrics
    return 100 * found.mean_ap, 100 * found.ap50, 100 * found.ap75
