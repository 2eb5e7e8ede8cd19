"""Charts of a report: scatter, strips of samples, lines, diverging bars, histogram."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ifkd.core.html.axes import Axes, format_tick, format_value, linear_ticks, log_ticks, rescale
from ifkd.core.html.chart import Series, draw_legend
from ifkd.core.html.svg import CHARACTER_WIDTH, SERIES_COLORS, WIDTH, Chart, Drawing

MAX_DOTS = 160
LOG_RANGE = 12.0
"""Ratio of the largest to the smallest sample from which the axis is logarithmic."""
GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class NamedPoint:
    """A named point of a scatter chart."""

    label: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class SampleSeries:
    """All samples of one measurement."""

    label: str
    samples: tuple[float, ...]


def scatter_chart(name: str, title: str, points: Sequence[NamedPoint], *, x_label: str, y_label: str) -> Chart:
    """Return points with their Pareto front, where small x and large y are better."""
    drawing, height = Drawing(), 280.0
    low, high = min(point.y for point in points), max(point.y for point in points)
    margin = max((high - low) * 0.25, 0.01)
    x_ticks = linear_ticks(0.0, max(point.x for point in points) * 1.15)
    y_ticks = linear_ticks(max(0.0, low - margin), min(1.0, high + margin))
    axes = Axes(50.0, WIDTH - 16.0, 30.0, height - 44, x_ticks, y_ticks)
    axes.draw(drawing, x_label=x_label, y_label=y_label)
    front = pareto_front(points)
    if len(front) > 1:
        drawing.polyline([axes.position(point.x, point.y) for point in front], "front")
    labels: list[_PlacedLabel] = []
    for index, point in enumerate(points):
        x, y = axes.position(point.x, point.y)
        drawing.circle(x, y, 6.0, f"f{index % SERIES_COLORS}")
        labels.append(_draw_label(drawing, point.label, x, y, right=axes.right, others=labels))
    values = "; ".join(f"{point.label}: {point.x:.4g} and {point.y:.3f}" for point in points)
    return drawing.chart(name, title, f"{x_label} against {y_label}. {values}.", height)


def pareto_front(points: Sequence[NamedPoint]) -> list[NamedPoint]:
    """Return the points without a better one (smaller x and larger y), by rising x."""
    front: list[NamedPoint] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def strip_chart(name: str, title: str, rows: Sequence[SampleSeries], *, unit: str) -> Chart:
    """Return a row for each measurement: samples as dots, the middle half as a box, the median as a line."""
    drawing = Drawing()
    row_height, top = 46.0, 14.0
    left, right = 8.0, WIDTH - 62.0
    bottom = top + row_height * len(rows)
    highest, lowest = max(max(row.samples) for row in rows), min(min(row.samples) for row in rows)
    logarithmic = highest > LOG_RANGE * lowest
    ticks = log_ticks(lowest, highest) if logarithmic else linear_ticks(0.0, highest * 1.02)

    def position(value: float) -> float:
        if logarithmic:
            return rescale(math.log(value), math.log(ticks[0]), math.log(ticks[-1]), left, right)
        return rescale(value, ticks[0], ticks[-1], left, right)

    for tick in ticks:
        drawing.line(position(tick), top, position(tick), bottom, "grid")
        drawing.text(position(tick), bottom + 16, format_tick(tick), "soft mid")
    medians = []
    for index, row in enumerate(rows):
        y = top + row_height * index
        css = f"f{index % SERIES_COLORS}"
        p25, p50, p75 = (float(value) for value in np.percentile(row.samples, [25, 50, 75]))
        drawing.text(left, y + 12, row.label, "halo strong")
        drawing.rectangle(position(p25), y + 19, max(position(p75) - position(p25), 1.5), 18.0, css, opacity=0.28)
        for order, sample in enumerate(_decimated(row.samples)):
            drawing.circle(position(sample), y + 28 + 6 * _jitter(order), 1.6, css, opacity=0.55)
        drawing.rectangle(position(p50) - 1.25, y + 16, 2.5, 24.0, css, corner_radius=1.0)
        drawing.text(WIDTH - 4, y + 32, f"{format_value(p50)} {unit}", "end strong")
        medians.append(f"{row.label}: median {format_value(p50)} {unit} of {len(row.samples)} runs")
    drawing.text(right, bottom + 34, f"{unit}, logarithmic" if logarithmic else unit, "soft end")
    return drawing.chart(name, title, f"{'; '.join(medians)}.", bottom + 42)


def line_chart(
    name: str, title: str, series: Sequence[Series], *, steps: Sequence[int], x_label: str, y_label: str
) -> Chart:
    """Return one line per series over evenly spaced steps."""
    drawing, height = Drawing(), 250.0 + 18 * len(series)
    left, right, top, bottom = 50.0, WIDTH - 20.0, 30.0, 206.0
    highest = max(value for one in series for value in one.values if value is not None)
    ticks = linear_ticks(0.0, highest * 1.05)
    last = max(len(steps) - 1.0, 1.0)
    columns = [rescale(float(index), 0.0, last, left + 20, right - 12) for index in range(len(steps))]
    Axes(left, right, top, bottom, (0.0, 1.0), ticks).draw_y_ticks(drawing)
    drawing.text(left, top - 14, y_label, "soft")
    for x, step in zip(columns, steps, strict=True):
        drawing.text(x, bottom + 16, str(step), "soft mid")
    drawing.text(right, bottom + 34, x_label, "soft end")
    descriptions = []
    for index, one in enumerate(series):
        points, values = [], []
        for x, step, value in zip(columns, steps, one.values, strict=True):
            if value is not None:
                points.append((x, rescale(value, ticks[0], ticks[-1], bottom, top)))
                values.append(f"{format_value(value)} at {step}")
        drawing.polyline(points, f"l{index % SERIES_COLORS}")
        for x, y in points:
            drawing.circle(x, y, 4.0, f"f{index % SERIES_COLORS}")
        descriptions.append(f"{one.label}: {', '.join(values)}")
    draw_legend(drawing, [one.label for one in series], left, bottom + 48)
    return drawing.chart(name, title, f"{y_label} by {x_label}. {'; '.join(descriptions)}.", height)


def diverging_bar_chart(
    name: str, title: str, groups: Sequence[str], series: Sequence[Series], *, x_label: str
) -> Chart:
    """Return horizontal bars to both sides of zero, one per series in each group."""
    drawing, thickness, left, right = Drawing(), 12.0, 8.0, WIDTH - 8.0
    top = 10.0 + 18 * len(series)
    draw_legend(drawing, [one.label for one in series], left, 14.0)
    largest = max([0.002, *(abs(value) for one in series for value in one.values if value is not None)])
    middle, half = (left + right) / 2, (right - left) / 2 - 54
    height = 22 + len(series) * (thickness + 3) + 6
    bottom = top + height * len(groups)
    drawing.line(middle, top, middle, bottom, "axis")
    values = []
    for row, group in enumerate(groups):
        drawing.text(left, top + row * height + 14, group, "halo strong")
        for index, one in enumerate(series):
            value, y = one.values[row], top + row * height + 22 + index * (thickness + 3)
            if value is None:
                continue
            length = abs(value) / largest * half
            start, width = middle - length if value < 0 else middle, max(length, 1.0)
            drawing.rectangle(start, y, width, thickness, f"f{index % SERIES_COLORS}")
            css, x = ("end ", start - 5) if value < 0 else ("", start + width + 5)
            drawing.text(x, y + thickness - 2, f"{value:+.3f}", f"{css}halo soft")
            values.append(f"{group}, {one.label}: {value:+.4f}")
    drawing.text(right, bottom + 16, x_label, "soft end")
    return drawing.chart(name, title, f"{x_label}. {'; '.join(values)}.", bottom + 24)


def histogram_chart(name: str, title: str, edges: Sequence[float], series: Sequence[Series], *, x_label: str) -> Chart:
    """Return the fractions of each bin as upright bars, one per series.

    A series has one value more than `edges`: below the first edge, between edges, and from the last edge on.
    """
    drawing = Drawing()
    left, right, top = 50.0, WIDTH - 8.0, 30.0 + 18 * len(series)
    bottom = top + 170.0
    draw_legend(drawing, [one.label for one in series], left, 14.0)
    highest = max(value for one in series for value in one.values if value is not None)
    ticks = linear_ticks(0.0, min(1.0, max(highest, 0.1)))
    for tick in ticks:
        y = rescale(tick, ticks[0], ticks[-1], bottom, top)
        drawing.line(left, y, right, y, "grid")
        drawing.text(left - 8, y + 4, f"{tick:.0%}", "soft end")
    bin_width = (right - left) / (len(edges) + 1)
    thickness = (bin_width - 6) / len(series)
    for index, one in enumerate(series):
        for place, value in enumerate(one.values):
            if value:
                y = rescale(value, ticks[0], ticks[-1], bottom, top)
                x = left + place * bin_width + 3 + index * thickness
                drawing.rectangle(x, y, thickness - 1, bottom - y, f"f{index % SERIES_COLORS}")
    drawing.line(left, bottom, right, bottom, "axis")
    for place, edge in enumerate(edges, 1):
        drawing.text(left + place * bin_width, bottom + 16, _edge_label(edge), "soft mid")
    drawing.text(right, bottom + 34, x_label, "soft end")
    bins = [f"below {_edge_label(edges[0])}", *(f"from {_edge_label(edge)}" for edge in edges)]
    descriptions = []
    for one in series:
        fractions = (f"{value:.1%} {where}" for where, value in zip(bins, one.values, strict=True) if value)
        descriptions.append(f"{one.label}: {', '.join(fractions)}")
    return drawing.chart(name, title, f"Fraction of all by {x_label}. {'; '.join(descriptions)}.", bottom + 42)


class _PlacedLabel(NamedTuple):
    y: float
    start: float
    end: float


def _draw_label(
    drawing: Drawing, text: str, x: float, y: float, *, right: float, others: Sequence[_PlacedLabel]
) -> _PlacedLabel:
    """Draw the label of a point beside it, at a height where it overlaps no other label."""
    width = len(text) * CHARACTER_WIDTH
    on_the_left = x + 10 + width > right
    start = x - 10 - width if on_the_left else x + 10
    heights = (y + 4, y - 10, y + 18, y - 24, y + 32)
    near = [one for one in others if start <= one.end and start + width >= one.start]
    height = next((one for one in heights if all(abs(one - other.y) > 12 for other in near)), heights[0])
    drawing.text(x - 10 if on_the_left else x + 10, height, text, "halo strong end" if on_the_left else "halo strong")
    return _PlacedLabel(height, start, start + width)


def _decimated(samples: Sequence[float]) -> list[float]:
    """Return the samples to draw: all, or evenly spaced order statistics that include both ends."""
    ordered = sorted(samples)
    if len(ordered) <= MAX_DOTS:
        return ordered
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, MAX_DOTS).round().astype(int)]


def _jitter(index: int) -> float:
    """Return values that are spread evenly over [-1, 1]."""
    return 2 * ((index * GOLDEN_RATIO) % 1) - 1


def _edge_label(value: float) -> str:
    """Return the label of an edge, in at most four characters so that neighbors do not overlap."""
    return f"{value:g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
