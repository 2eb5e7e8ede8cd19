"""Figure 6 of the paper: what teacher, student, AT and IFKD find in the same images, over the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ifkd import recipe
from ifkd.core.detections import Array, Detections
from ifkd.study.figures.drawing import PREDICTED, TRUE, Numbers, Row, bare, panel_widths, picture, save, sheet
from ifkd.study.figures.examples import Example
from ifkd.study.figures.trained_runs import TrainedRun
from ifkd.training.prediction import detect

NAME = "figure6-detections"
LEAST_SCORE = 0.3
HALO = {"facecolor": "white", "alpha": 0.72, "edgecolor": "none", "pad": 0.6}


def found_by(
    run: TrainedRun, shown: Sequence[Example], settings: recipe.Recipe, *, least_score: float = LEAST_SCORE
) -> list[Detections]:
    """Return what a run's detector finds in each example, of scores above `least_score`."""
    selection = settings.postprocess.model_copy(update={"score_threshold": least_score})
    per_level = settings.export.candidates_per_level
    return [
        detect(run.detector, [example.padded], selection, per_level=per_level)[0].clipped(example.size)
        for example in shown
    ]


def draw_detections(
    found: Mapping[str, Sequence[Detections]], shown: Sequence[Example], classes: Sequence[str], folder: Path
) -> list[Path]:
    """Write a row for each example and a column for each detector, its boxes over those of the truth.

    Args:
        found: By the detector's name, what it found in each example.
        shown: The examples.
        classes: Names by label; a single one is not written.
        folder: Where.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OutputError: The folder cannot be written.
    """
    width, side = panel_widths(len(found))
    tallest = max(example.size[0] / example.size[1] for example in shown)
    height = len(shown) * side * tallest + 0.45
    with sheet(width, height, rows=len(shown), columns=len(found)) as (figure, grid):
        for column, (name, detections) in enumerate(found.items()):
            for row, example in enumerate(shown):
                axes = grid[row, column]
                bare(axes, title=name if row == 0 else "")
                picture(axes, example.pixels)
                _outline(axes, example.boxes, TRUE, width=0.8)
                _outline(axes, detections[row].boxes, PREDICTED, width=0.9)
                _label(axes, detections[row], classes, example)
        figure.legend(handles=_legend(), loc="outside lower center", ncols=2, handlelength=1.4)
        return save(figure, detection_numbers(found, shown, classes), folder, NAME)


def detection_numbers(
    found: Mapping[str, Sequence[Detections]], shown: Sequence[Example], classes: Sequence[str]
) -> Numbers:
    """Return every box of the figure: those of the truth, without a score, and each detector's."""
    rows: list[Row] = []
    for number, example in enumerate(shown):
        boxes = zip(example.boxes, example.labels, strict=True)
        rows += [(example.name, "truth", classes[label], "", *map(float, box)) for box, label in boxes]
        for name, detections in found.items():
            one = detections[number]
            rows += [
                (example.name, name, classes[label], float(score), *map(float, box))
                for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True)
            ]
    return Numbers(("image", "source", "class", "score", "x1", "y1", "x2", "y2"), rows)


def _outline(axes: Any, boxes: Array, color: str, *, width: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - an optional package

    for x1, y1, x2, y2 in boxes.tolist():
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width))


def _label(axes: Any, found: Detections, classes: Sequence[str], example: Example) -> None:
    """Write class and score above each box, or below it at the image's upper edge."""
    for (x1, y1, _, y2), score, label in zip(found.boxes.tolist(), found.scores, found.labels, strict=True):
        words = f"{score:.2f}" if len(classes) == 1 else f"{classes[label]} {score:.2f}"
        above = y1 > 0.05 * example.size[0]
        axes.text(
            x1,
            y1 - 1 if above else y2 + 1,
            words,
            color=PREDICTED,
            fontsize=4.2,
            verticalalignment="bottom" if above else "top",
            bbox=HALO,
            clip_on=True,
        )


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an optional package

    return [
        Line2D([], [], color=PREDICTED, linewidth=1.6, label="predicted, with its score"),
        Line2D([], [], color=TRUE, linewidth=1.6, label="true"),
    ]
