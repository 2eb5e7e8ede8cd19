"""Figure of a comparison or an ablation: mAP on the test split of each variant and seed."""

import statistics
from pathlib import Path

from ifkd.study.figures import plotting
from ifkd.study.figures.plotting import FigureData
from ifkd.study.study_record import TEACHER, EvaluatedRun, StudyRecord, map_spread
from ifkd.study.variants import PLAIN

NAME = "comparison"
ROW_INCHES = 0.21
IFKD_COLOR, OTHER_COLOR = plotting.OKABE_ITO[4], plotting.OKABE_ITO[0]


def comparison_data(record: StudyRecord) -> FigureData:
    """Return mAP, AP50 and AP75 in points of each finished run: the teacher, then variants by decreasing mean mAP."""
    runs: list[tuple[str, int, EvaluatedRun | None]] = [(TEACHER, record.seeds[0], record.teacher)]
    for label in labels_by_map(record):
        runs += [(label, seed, run) for seed, run in zip(record.seeds, record.students[label], strict=True)]
    metrics = [(label, seed, run.metrics) for label, seed, run in runs if run is not None]
    rows = [(label, seed, 100 * one.mean_ap, 100 * one.ap50, 100 * one.ap75) for label, seed, one in metrics]
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
            color = IFKD_COLOR if "ifkd" in label else OTHER_COLOR
            values = [100 * run.metrics.mean_ap for run in record.finished(label)]
            mean = statistics.fmean(values)
            axes.plot([mean, mean], [row - 0.32, row + 0.32], color=color, linewidth=2)
            axes.plot(values, [row] * len(values), "o", color=color, markersize=3.5, alpha=0.6, markeredgewidth=0)
        plotting.draw_baseline(axes, 100 * record.teacher.metrics.mean_ap, "teacher", horizontal=False)
        if plain := map_spread(record.finished(PLAIN.label)):
            plotting.draw_baseline(axes, plain.mean, "plain student", horizontal=False)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="mAP on the test split, points: each seed, and the mean")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=2, handlelength=2.2)
        return plotting.save_figure(figure, comparison_data(record), folder, NAME)
