"""Figure 6 of the paper: detections of teacher, plain student, AT and IFKD over the ground truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ifkd import recipe
from ifkd.core.detections import Array, Detections
from ifkd.core.oriented_boxes import corners, from_upright
from ifkd.study.figures import plotting
from ifkd.study.figures.examples import Example
from ifkd.study.figures.plotting import GROUND_TRUTH_COLOR, PREDICTED_COLOR, FigureData, Row
from ifkd.study.figures.trained_runs import FinishedRun
from ifkd.training.prediction import detect

NAME = "figure6-detections"
UPRIGHT_COLUMNS = ("x1", "y1", "x2", "y2")
ORIENTED_COLUMNS = ("center_x", "center_y", "length", "width", "angle_deg")
LABEL_BACKGROUND = {"facecolor": "white", "alpha": 0.72, "edgecolor": "none", "pad": 0.6}
LABEL_STYLE = {"color": PREDICTED_COLOR, "fontsize": 4.2, "bbox": LABEL_BACKGROUND, "clip_on": True}


def detect_examples(
    run: FinishedRun, examples: Sequence[Example], settings: recipe.Recipe, *, score_threshold: float
) -> list[Detections]:
    """Return the detections of a run's detector in each example."""
    postprocess = settings.postprocess.model_copy(update={"score_threshold": score_threshold})
    per_level = settings.export.candidates_per_level
    found = [detect(run.detector, [one.padded], postprocess, per_level=per_level)[0] for one in examples]
    return [detections.clipped(one.size) for detections, one in zip(found, examples, strict=True)]


def draw_detections(
    detections: Mapping[str, Sequence[Detections]], examples: Sequence[Example], classes: Sequence[str], folder: Path
) -> list[Path]:
    """Write a row for each example and a column for each detector: detections over ground truth.

    `detections` are by name of the detector and example. The name of a single class is not written on the figure. Boxes
    are oriented if those of the detectors are.
    """
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an optional package

    tallest = max(example.size[0] / example.size[1] for example in examples)
    with plotting.panel_grid(len(examples), len(detections), aspect=tallest, margin=0.45) as (figure, grid):
        for column, (name, found) in enumerate(detections.items()):
            for row, example in enumerate(examples):
                axes = grid[row, column]
                plotting.show_image(axes, example.pixels, title=name if row == 0 else "")
                objects = _object_outlines(example, oriented=_are_oriented(detections))
                _draw_boxes(axes, objects, GROUND_TRUTH_COLOR, line_width=0.8)
                _draw_boxes(axes, found[row].outlines, PREDICTED_COLOR, line_width=0.9)
                _draw_labels(axes, found[row], classes, example)
        colors = {"predicted, with score": PREDICTED_COLOR, "ground truth": GROUND_TRUTH_COLOR}
        handles = [Line2D([], [], color=color, linewidth=1.6, label=label) for label, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.4)
        return plotting.save_figure(figure, detection_data(detections, examples, classes), folder, NAME)


def detection_data(
    detections: Mapping[str, Sequence[Detections]], examples: Sequence[Example], classes: Sequence[str]
) -> FigureData:
    """Return all boxes of the figure: ground truth, without a score, and the detections."""
    rows: list[Row] = []
    oriented = _are_oriented(detections)
    for number, example in enumerate(examples):
        boxes = zip(_object_outlines(example, oriented=oriented), example.labels, strict=True)
        rows += [(example.name, "ground truth", classes[label], "", *map(float, box)) for box, label in boxes]
        for name, of_examples in detections.items():
            found = of_examples[number]
            for box, score, label in zip(found.outlines, found.scores, found.labels, strict=True):
                rows.append((example.name, name, classes[label], float(score), *map(float, box)))
    return FigureData(("image", "source", "class", "score", *(ORIENTED_COLUMNS if oriented else UPRIGHT_COLUMNS)), rows)


def _are_oriented(detections: Mapping[str, Sequence[Detections]]) -> bool:
    """Return whether boxes are drawn as oriented ones; the detectors of a study are all oriented or all upright."""
    return any(one.oriented is not None for found in detections.values() for one in found)


def _object_outlines(example: Example, *, oriented: bool) -> Array:
    if not oriented:
        return example.boxes
    return from_upright(example.boxes) if example.oriented is None else example.oriented


def _draw_boxes(axes: Any, boxes: Array, color: str, *, line_width: float) -> None:
    """Draw upright boxes [n, 4] or oriented ones [n, 5]."""
    from matplotlib.patches import Polygon  # noqa: PLC0415 - an optional package

    for points in corners(boxes if boxes.shape[1] == 5 else from_upright(boxes)):
        axes.add_patch(Polygon(points, fill=False, edgecolor=color, linewidth=line_width, joinstyle="miter"))


def _draw_labels(axes: Any, found: Detections, classes: Sequence[str], example: Example) -> None:
    """Write class and score above each box, or below it near the image's upper edge."""
    for (x1, y1, _, y2), score, label in zip(found.boxes.tolist(), found.scores, found.labels, strict=True):
        above = y1 > 0.05 * example.size[0]
        y, alignment = (y1 - 1, "bottom") if above else (y2 + 1, "top")
        text = f"{score:.2f}" if len(classes) == 1 else f"{classes[label]} {score:.2f}"
        axes.text(x1, y, text, verticalalignment=alignment, **LABEL_STYLE)
