"""Charts of a study's page: how the students learned, and what a sweep gave."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ifkd.core.html.chart import (
    SERIES,
    WIDTH,
    Chart,
    Pen,
    legend,
    log_ticks,
    round_ticks,
    scaled,
    short,
    tick_word,
    x_axis,
    y_axis,
)
from ifkd.study.learning_curves import Curve, Learning
from ifkd.study.study_record import StudyRecord, mean_ap
from ifkd.study.variant import PLAIN

Place = tuple[float, float]
Placing = Callable[[float, float], Place]
PANEL_WIDTH, PANEL_HEIGHT, PANEL_GAP = 178.0, 112.0, 46.0
FAINT = 0.22
FEWEST_DECADES = 1.0
"""Least range of a loss chart's axis, so that a level line looks level."""


def validation_chart(learned: Mapping[str, Learning]) -> Chart:
    """Return validation mAP by epoch, one panel for each variant, the plain student's in all of them.

    Args:
        learned: By variant; one that was validated once has no line, and one at least has more.
    """
    curves = {label: one.validation for label, one in learned.items() if one.validation.is_line}
    panels = {label: curve for label, curve in curves.items() if label != PLAIN.label} or curves
    pen, plain = Pen(), curves.get(PLAIN.label)
    y_ticks = round_ticks(0.0, max(max(curve.greatest) for curve in curves.values()))
    x_ticks = round_ticks(0.0, max(curve.places[-1] for curve in curves.values()), 4)
    for index, (label, curve) in enumerate(panels.items()):
        left = 30.0 + (index % 2) * (PANEL_WIDTH + 42.0)
        top = 48.0 + (index // 2) * (PANEL_HEIGHT + PANEL_GAP)
        right, bottom = left + PANEL_WIDTH, top + PANEL_HEIGHT

        place = _placing(x_ticks, y_ticks, (left, right, top, bottom))
        y_axis(pen, y_ticks, left, right, top, bottom)
        x_axis(pen, x_ticks, left, right, bottom)
        pen.text(left, top - 8, label, "halo strong")
        pen.text(right, top - 8, f"{curve.mean[-1]:.1f}", "soft end")
        if plain is not None and label != PLAIN.label:
            pen.path([place(*point) for point in zip(plain.places, plain.mean, strict=True)], "front")
        _line(pen, curve, place, 0)
    rows = -(-len(panels) // 2)
    height = 48.0 + rows * (PANEL_HEIGHT + PANEL_GAP) + 10
    pen.text(8.0, 18.0, "mAP on the validation part, points; dashed the plain student", "soft")
    pen.text(WIDTH - 8, height - 8, "epoch", "soft end")
    told = "; ".join(
        f"{label}: {curve.mean[-1]:.1f} after epoch {curve.places[-1]:g}, at best {max(curve.mean):.1f}"
        for label, curve in curves.items()
    )
    return pen.done("validation", "Validation mAP by epoch", f"mAP in points by epoch. {told}.", height)


def loss_chart(number: int, label: str, losses: Mapping[str, Curve]) -> Chart:
    """Return a variant's weighted loss terms by step, on a logarithmic axis.

    Args:
        number: Tells the page's charts apart.
        label: The variant's.
        losses: By term; those that are never above 0 are left out, and one at least is.
    """
    felt = [(name, curve) for name, curve in losses.items() if curve.is_felt]
    pen, shown = Pen(), dict(felt[:SERIES])
    left, right, top, bottom = 50.0, WIDTH - 16.0, 30.0, 196.0
    values = [value for curve in shown.values() for value in curve.mean if value > 0]
    low, high = math.log10(min(values)), math.log10(max(values))
    spare = max(0.0, FEWEST_DECADES - (high - low)) / 2
    y_ticks = log_ticks(10 ** (low - spare), 10 ** (high + spare))
    x_ticks = round_ticks(0.0, max(curve.places[-1] for curve in shown.values()), 4)

    def place(x: float, y: float) -> Place:
        ends = (math.log10(y_ticks[0]), math.log10(y_ticks[-1]))
        return scaled(x, x_ticks[0], x_ticks[-1], left, right), scaled(math.log10(y), *ends, bottom, top)

    for tick in y_ticks:
        _, y = place(0.0, tick)
        pen.line(left, y, right, y, "grid")
        pen.text(left - 8, y + 4, tick_word(tick), "soft end")
    x_axis(pen, x_ticks, left, right, bottom)
    pen.text(left, top - 14, "weighted loss, logarithmic", "soft")
    pen.text(right, bottom + 34, "step", "soft end")
    for index, curve in enumerate(shown.values()):
        _line(pen, curve, place, index, logarithmic=True)
    legend(pen, list(shown), left, bottom + 48)
    ends = ((name, short(curve.mean[0]), short(curve.mean[-1])) for name, curve in shown.items())
    told = "; ".join(f"{name}: {first} at first, {last} at last" for name, first, last in ends)
    height = bottom + 44 + 18 * len(shown)
    return pen.done(f"losses-{number}", label, f"Weighted loss terms of {label} by step. {told}.", height)


def sweep_chart(record: StudyRecord) -> Chart:
    """Return mAP against the parameter of a sweep, with the spread over seeds; teacher and plain student as lines."""
    found = {record.values[label]: record.finished(label) for label in record.values if record.finished(label)}
    spreads = {value: mean for value, runs in sorted(found.items()) if (mean := mean_ap(runs))}
    levels = {"teacher": 100 * record.teacher.metrics.mean_ap}
    if plain := mean_ap(record.finished(PLAIN.label)):
        levels["plain student"] = plain.mean
    pen, left, right, top, bottom = Pen(), 50.0, WIDTH - 16.0, 30.0, 226.0
    lows = [one.mean - (one.deviation or 0.0) for one in spreads.values()]
    highs = [one.mean + (one.deviation or 0.0) for one in spreads.values()]
    y_ticks = round_ticks(min(*lows, *levels.values()), max(*highs, *levels.values()))
    x_ticks = round_ticks(0.0, max(spreads))

    place = _placing(x_ticks, y_ticks, (left, right, top, bottom))
    y_axis(pen, y_ticks, left, right, top, bottom)
    x_axis(pen, x_ticks, left, right, bottom)
    pen.text(left, top - 14, "mAP, points", "soft")
    pen.text(right, bottom + 34, str(record.parameter), "soft end")
    heights = sorted((place(0.0, level)[1], name) for name, level in levels.items())
    crowded = any(below - above < 14 for (above, _), (below, _) in pairwise(heights))
    for order, (y, name) in enumerate(heights):
        pen.path([(left, y), (right, y)], "front")
        pen.text(right, y + 14 if crowded and order else y - 5, name, "halo soft end")
    pen.path([place(value, one.mean) for value, one in spreads.items()], "l0")
    for value, one in spreads.items():
        if one.deviation is not None:
            pen.line(*place(value, one.mean - one.deviation), *place(value, one.mean + one.deviation), "l0")
        pen.dot(*place(value, one.mean), 4.0, "f0")
    points = [f"{value:g}: {one}" for value, one in spreads.items()]
    told = "; ".join([*points, *(f"{name}: {level:.1f}" for name, level in levels.items())])
    title = f"mAP against {record.parameter}"
    return pen.done("sweep", title, f"mAP on the test split, points, by {record.parameter}. {told}.", bottom + 42)


def _placing(x_ticks: Sequence[float], y_ticks: Sequence[float], frame: tuple[float, float, float, float]) -> Placing:
    """Return how values are placed in a frame (left, right, top, bottom)."""
    left, right, top, bottom = frame

    def place(x: float, y: float) -> Place:
        return scaled(x, x_ticks[0], x_ticks[-1], left, right), scaled(y, y_ticks[0], y_ticks[-1], bottom, top)

    return place


def _line(pen: Pen, curve: Curve, place: Placing, index: int, *, logarithmic: bool = False) -> None:
    """Draw a curve's mean, and faintly what lies between its runs."""
    rows = [
        row
        for row in zip(curve.places, curve.mean, curve.least, curve.greatest, strict=True)
        if not logarithmic or row[2] > 0
    ]
    if any(least < greatest for _, _, least, greatest in rows):
        upper = [place(x, greatest) for x, _, _, greatest in rows]
        lower = [place(x, least) for x, _, least, _ in reversed(rows)]
        pen.area([*upper, *lower], f"f{index % SERIES}", opacity=FAINT)
    if rows:
        pen.path([place(x, mean) for x, mean, _, _ in rows], f"l{index % SERIES}")
