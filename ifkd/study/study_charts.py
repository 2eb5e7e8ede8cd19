"""Charts of a study's page: validation mAP, loss terms, and the results of a sweep."""

import math
from collections.abc import Mapping
from itertools import pairwise

from ifkd.core.html.axes import Axes, format_value, linear_ticks, log_ticks
from ifkd.core.html.chart import draw_legend
from ifkd.core.html.svg import SERIES_COLORS, WIDTH, Chart, Drawing
from ifkd.study.learning_curves import Curve, LearningCurves
from ifkd.study.study_record import StudyRecord, map_spread
from ifkd.study.variants import PLAIN

PANEL_WIDTH, PANEL_HEIGHT, PANEL_GAP = 178.0, 112.0, 46.0
RANGE_OPACITY = 0.22
MIN_DECADES = 1.0
"""Minimum range of a loss axis, so that small changes do not fill it."""


def validation_chart(curves: Mapping[str, LearningCurves]) -> Chart:
    """Return validation mAP by epoch: one panel per variant, with the plain student as a dashed line in each.

    At least one of the curves, which are by variant, has two validations or more.
    """
    lines = {label: one.validation for label, one in curves.items() if len(one.validation.x) > 1}
    panels = {label: curve for label, curve in lines.items() if label != PLAIN.label} or lines
    drawing, plain = Drawing(), lines.get(PLAIN.label)
    y_ticks = linear_ticks(0.0, max(max(curve.high) for curve in lines.values()))
    x_ticks = linear_ticks(0.0, max(curve.x[-1] for curve in lines.values()), 4)
    for index, (label, curve) in enumerate(panels.items()):
        left = 30.0 + (index % 2) * (PANEL_WIDTH + 42.0)
        top = 48.0 + (index // 2) * (PANEL_HEIGHT + PANEL_GAP)
        axes = Axes(left, left + PANEL_WIDTH, top, top + PANEL_HEIGHT, x_ticks, y_ticks)
        axes.draw(drawing)
        drawing.text(left, top - 8, label, "halo strong")
        drawing.text(axes.right, top - 8, f"{curve.mean[-1]:.1f}", "soft end")
        if plain is not None and label != PLAIN.label:
            drawing.polyline([axes.position(*point) for point in zip(plain.x, plain.mean, strict=True)], "front")
        _draw_curve(drawing, axes, curve, 0)
    height = 48.0 + -(-len(panels) // 2) * (PANEL_HEIGHT + PANEL_GAP) + 10
    drawing.text(8.0, 18.0, "mAP on the validation split, points; dashed: plain student", "soft")
    drawing.text(WIDTH - 8, height - 8, "epoch", "soft end")
    values = "; ".join(
        f"{label}: {curve.mean[-1]:.1f} after epoch {curve.x[-1]:g}, best {max(curve.mean):.1f}"
        for label, curve in lines.items()
    )
    return drawing.chart("validation", "Validation mAP by epoch", f"mAP in points by epoch. {values}.", height)


def loss_chart(number: int, label: str, losses: Mapping[str, Curve]) -> Chart:
    """Return a variant's weighted loss terms by step on a logarithmic axis, chart `number` of the page.

    Terms that are never above 0 are left out, and at least one is.
    """
    shown = dict([(term, curve) for term, curve in losses.items() if curve.has_positive][:SERIES_COLORS])
    values = [value for curve in shown.values() for value in curve.mean if value > 0]
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.0, MIN_DECADES - (high - low)) / 2
    y_ticks = log_ticks(10 ** (low - margin), 10 ** (high + margin))
    x_ticks = linear_ticks(0.0, max(curve.x[-1] for curve in shown.values()), 4)
    drawing, axes = Drawing(), Axes(50.0, WIDTH - 16.0, 30.0, 196.0, x_ticks, y_ticks, log_y=True)
    axes.draw(drawing, x_label="step", y_label="weighted loss, logarithmic")
    for index, curve in enumerate(shown.values()):
        _draw_curve(drawing, axes, curve, index)
    draw_legend(drawing, list(shown), axes.left, axes.bottom + 48)
    ends = "; ".join(
        f"{term}: {format_value(curve.mean[0])} at first, {format_value(curve.mean[-1])} at last"
        for term, curve in shown.items()
    )
    height = axes.bottom + 44 + 18 * len(shown)
    return drawing.chart(f"losses-{number}", label, f"Weighted loss terms of {label} by step. {ends}.", height)


def sweep_chart(record: StudyRecord) -> Chart:
    """Return mAP by the swept parameter with its spread over seeds; teacher and plain student are dashed lines."""
    found = {value: map_spread(record.finished(label)) for label, value in record.parameter_values.items()}
    spreads = {value: spread for value, spread in sorted(found.items()) if spread is not None}
    baselines = {"teacher": 100 * record.teacher.mean_ap}
    if plain := map_spread(record.finished(PLAIN.label)):
        baselines["plain student"] = plain.mean
    lows = [one.mean - (one.std or 0.0) for one in spreads.values()]
    highs = [one.mean + (one.std or 0.0) for one in spreads.values()]
    y_ticks = linear_ticks(min(*lows, *baselines.values()), max(*highs, *baselines.values()))
    drawing, axes = Drawing(), Axes(50.0, WIDTH - 16.0, 30.0, 226.0, linear_ticks(0.0, max(spreads)), y_ticks)
    axes.draw(drawing, x_label=str(record.parameter), y_label="mAP, points")
    heights = sorted((axes.position(0.0, value)[1], name) for name, value in baselines.items())
    crowded = any(below - above < 14 for (above, _), (below, _) in pairwise(heights))
    for order, (y, name) in enumerate(heights):
        drawing.polyline([(axes.left, y), (axes.right, y)], "front")
        drawing.text(axes.right, y + 14 if crowded and order else y - 5, name, "halo soft end")
    drawing.polyline([axes.position(value, one.mean) for value, one in spreads.items()], "l0")
    for value, one in spreads.items():
        if one.std is not None:
            drawing.line(*axes.position(value, one.mean - one.std), *axes.position(value, one.mean + one.std), "l0")
        drawing.circle(*axes.position(value, one.mean), 4.0, "f0")
    values = [f"{value:g}: {one}" for value, one in spreads.items()]
    values += [f"{name}: {value:.1f}" for name, value in baselines.items()]
    description = f"mAP on the test split, points, by {record.parameter}. {'; '.join(values)}."
    return drawing.chart("sweep", f"mAP by {record.parameter}", description, axes.bottom + 42)


def _draw_curve(drawing: Drawing, axes: Axes, curve: Curve, series: int) -> None:
    """Draw a curve's mean as a line over the range of its runs; a logarithmic axis shows positive values only."""
    points = [
        (axes.position(x, mean), axes.position(x, low), axes.position(x, high))
        for x, mean, low, high in zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
        if not axes.log_y or low > 0
    ]
    if any(low != high for _, low, high in points):
        outline = [high for _, _, high in points] + [low for _, low, _ in reversed(points)]
        drawing.polygon(outline, f"f{series % SERIES_COLORS}", opacity=RANGE_OPACITY)
    if points:
        drawing.polyline([mean for mean, _, _ in points], f"l{series % SERIES_COLORS}")
