"""The report's plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifkd.core.html.axes import (
    draw_x_axis,
    draw_y_axis,
    format_tick,
    format_value,
    linear_ticks,
    log_ticks,
    rescale,
)
from ifkd.core.html.chart import Series, draw_legend
from ifkd.core.html.svg import CHARACTER_WIDTH, SERIES_COLORS, WIDTH, Chart, Drawing

DOTS_DRAWN = 160


@dataclass(frozen=True, slots=True)
class Point:
    """A named point of a scatter."""

    label: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class StripSeries:
    """All samples of one measurement."""

    label: str
    samples: tuple[float, ...]


def scatter(name: str, title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> Chart:
    """Return points where left and up are better, with the front of those that no other beats at both."""
    drawing, height = Drawing(), 280.0
    left, right, top, bottom = 50.0, WIDTH - 16.0, 30.0, height - 44
    x_ticks = linear_ticks(0.0, max(point.x for point in points) * 1.15)
    low = min(point.y for point in points)
    high = max(point.y for point in points)
    margin = max((high - low) * 0.25, 0.01)
    y_ticks = linear_ticks(max(0.0, low - margin), min(1.0, high + margin))

    def place(point: Point) -> tuple[float, float]:
        return (
            rescale(point.x, x_ticks[0], x_ticks[-1], left, right),
            rescale(point.y, y_ticks[0], y_ticks[-1], bottom, top),
        )

    draw_y_axis(drawing, y_ticks, left, right, top, bottom)
    draw_x_axis(drawing, x_ticks, left, right, bottom)
    drawing.text(left, top - 14, y_label, "soft")
    drawing.text(right, height - 8, x_label, "soft end")
    front = pareto(points)
    if len(front) > 1:
        drawing.polyline([place(point) for point in front], "front")
    taken: list[tuple[float, float, float]] = []
    for index, point in enumerate(points):
        x, y = place(point)
        drawing.circle(x, y, 6.0, f"f{index % SERIES_COLORS}")
        wide = len(point.label) * CHARACTER_WIDTH
        before = x + 10 + wide > right
        start = x - 10 - wide if before else x + 10
        level = next(
            (
                level
                for level in (y + 4, y - 10, y + 18, y - 24, y + 32)
                if all(abs(level - other) > 12 or start > end or start + wide < begin for other, begin, end in taken)
            ),
            y + 4,
        )
        taken.append((level, start, start + wide))
        drawing.text(x - 10 if before else x + 10, level, point.label, "halo strong end" if before else "halo strong")
    values_text = "; ".join(f"{point.label}: {point.x:.4g} and {point.y:.3f}" for point in points)
    return drawing.chart(name, title, f"{x_label} against {y_label}. {values_text}.", height)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both directions (less x, more y), from left to right."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def strips(name: str, title: str, rows: Sequence[StripSeries], *, unit: str) -> Chart:
    """Return every measurement as a row: its samples as dots, the middle half as a band, the median as a line."""
    drawing = Drawing()
    row_height, top = 46.0, 14.0
    left, right = 8.0, WIDTH - 62.0
    bottom = top + row_height * len(rows)
    highest = max(max(row.samples) for row in rows)
    lowest = min(min(row.samples) for row in rows)
    logarithmic = highest > 12 * lowest
    ticks = log_ticks(lowest, highest) if logarithmic else linear_ticks(0.0, highest * 1.02)

    def place(value: float) -> float:
        if logarithmic:
            return rescale(math.log(value), math.log(ticks[0]), math.log(ticks[-1]), left, right)
        return rescale(value, ticks[0], ticks[-1], left, right)

    for tick in ticks:
        drawing.line(place(tick), top, place(tick), bottom, "grid")
        drawing.text(place(tick), bottom + 16, format_tick(tick), "soft mid")
    for index, row in enumerate(rows):
        base = top + row_height * index
        css = f"f{index % SERIES_COLORS}"
        p25, p50, p75 = (float(value) for value in np.percentile(row.samples, [25, 50, 75]))
        drawing.text(left, base + 12, row.label, "halo strong")
        drawing.rectangle(place(p25), base + 19, max(place(p75) - place(p25), 1.5), 18.0, css, opacity=0.28)
        for order, sample in enumerate(_thinned(row.samples)):
            drawing.circle(place(sample), base + 28 + 6 * _jitter(order), 1.6, css, opacity=0.55)
        drawing.rectangle(place(p50) - 1.25, base + 16, 2.5, 24.0, css, corner_radius=1.0)
        drawing.text(WIDTH - 4, base + 32, f"{format_value(p50)} {unit}", "end strong")
    scale = f"{unit}, logarithmic" if logarithmic else unit
    drawing.text(right, bottom + 34, scale, "soft end")
    values_text = "; ".join(
        f"{row.label}: median {format_value(float(np.median(row.samples)))} {unit} of {len(row.samples)} runs"
        for row in rows
    )
    return drawing.chart(name, title, f"{values_text}.", bottom + 42)


def lines(
    name: str, title: str, series: Sequence[Series], *, steps: Sequence[int], x_label: str, y_label: str
) -> Chart:
    """Return one line per series over named steps, evenly spaced."""
    drawing, height = Drawing(), 250.0 + 18 * len(series)
    left, right, top, bottom = 50.0, WIDTH - 20.0, 30.0, 206.0
    highest = max(value for one in series for value in one.values if value is not None)
    ticks = linear_ticks(0.0, highest * 1.05)
    places = [
        rescale(float(index), 0.0, max(len(steps) - 1.0, 1.0), left + 20, right - 12) for index in range(len(steps))
    ]
    draw_y_axis(drawing, ticks, left, right, top, bottom)
    drawing.text(left, top - 14, y_label, "soft")
    for x, step in zip(places, steps, strict=True):
        drawing.text(x, bottom + 16, str(step), "soft mid")
    drawing.text(right, bottom + 34, x_label, "soft end")
    for index, one in enumerate(series):
        points = [
            (x, rescale(value, ticks[0], ticks[-1], bottom, top))
            for x, value in zip(places, one.values, strict=True)
            if value is not None
        ]
        drawing.polyline(points, f"l{index % SERIES_COLORS}")
        for x, y in points:
            drawing.circle(x, y, 4.0, f"f{index % SERIES_COLORS}")
    draw_legend(drawing, [one.label for one in series], left, bottom + 48)
    values_text = "; ".join(
        f"{one.label}: "
        + ", ".join(
            f"{format_value(value)} at {step}"
            for step, value in zip(steps, one.values, strict=True)
            if value is not None
        )
        for one in series
    )
    return drawing.chart(name, title, f"{y_label} by {x_label}. {values_text}.", height)


def diverging(name: str, title: str, groups: Sequence[str], series: Sequence[Series], *, x_label: str) -> Chart:
    """Return horizontal bars to both sides of zero, one per series in each named group."""
    drawing, thick, left, right = Drawing(), 12.0, 8.0, WIDTH - 8.0
    top = 10.0 + 18 * len(series)
    draw_legend(drawing, [one.label for one in series], left, 14.0)
    most = max([0.002, *(abs(value) for one in series for value in one.values if value is not None)])
    middle, half = (left + right) / 2, (right - left) / 2 - 54
    height = 22 + len(series) * (thick + 3) + 6
    bottom = top + height * len(groups)
    drawing.line(middle, top, middle, bottom, "axis")
    values_text = []
    for row, group in enumerate(groups):
        drawing.text(left, top + row * height + 14, group, "halo strong")
        for index, one in enumerate(series):
            value, y = one.values[row], top + row * height + 22 + index * (thick + 3)
            if value is None:
                continue
            reach = abs(value) / most * half
            drawing.rectangle(
                middle - reach if value < 0 else middle, y, max(reach, 1.0), thick, f"f{index % SERIES_COLORS}"
            )
            css, edge = ("end ", middle - reach - 5) if value < 0 else ("", middle + max(reach, 1.0) + 5)
            drawing.text(edge, y + thick - 2, f"{value:+.3f}", f"{css}halo soft")
            values_text.append(f"{group}, {one.label}: {value:+.4f}")
    drawing.text(right, bottom + 16, x_label, "soft end")
    return drawing.chart(name, title, f"{x_label}. {'; '.join(values_text)}.", bottom + 24)


def _thinned(samples: Sequence[float]) -> list[float]:
    """Return the samples to draw as dots: all, or evenly spaced order statistics with both ends."""
    ordered = sorted(samples)
    if len(ordered) <= DOTS_DRAWN:
        return ordered
    places = np.linspace(0, len(ordered) - 1, DOTS_DRAWN).round().astype(int)
    return [ordered[place] for place in places]


def _jitter(index: int) -> float:
    """Return an even spread over [-1, 1] by the golden ratio, always alike."""
    return 2 * ((index * 0.6180339887498949) % 1) - 1


def histogram(name: str, title: str, edges: Sequence[float], series: Sequence[Series], *, x_label: str) -> Chart:
    """Return shares by bin as upright bars, one per series in each bin.

    Args:
        name: For its file.
        title: What is counted.
        edges: Where bins meet, rising.
        series: Shares of each bin, one more than edges: below the first edge, between edges, from the last on.
        x_label: What the edges measure.
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
    wide = (right - left) / (len(edges) + 1)
    thick = (wide - 6) / len(series)
    for index, one in enumerate(series):
        for place, value in enumerate(one.values):
            if value:
                y = rescale(value, ticks[0], ticks[-1], bottom, top)
                drawing.rectangle(
                    left + place * wide + 3 + index * thick, y, thick - 1, bottom - y, f"f{index % SERIES_COLORS}"
                )
    drawing.line(left, bottom, right, bottom, "axis")
    for place, edge in enumerate(edges, 1):
        drawing.text(left + place * wide, bottom + 16, _edge_word(edge), "soft mid")
    drawing.text(right, bottom + 34, x_label, "soft end")
    bins = [f"below {_edge_word(edges[0])}", *(f"from {_edge_word(edge)}" for edge in edges)]
    values_text = "; ".join(
        f"{one.label}: "
        + ", ".join(f"{value:.1%} {where}" for where, value in zip(bins, one.values, strict=True) if value)
        for one in series
    )
    return drawing.chart(name, title, f"Share of all by {x_label}. {values_text}.", bottom + 42)


def _edge_word(value: float) -> str:
    """Return an edge in at most four characters, so that neighbors keep apart."""
    return f"{value:g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
