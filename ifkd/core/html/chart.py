"""Bar and scatter charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ifkd.core.html.axes import format_tick, format_value, linear_ticks, log_ticks, rescale
from ifkd.core.html.svg import SERIES_COLORS, WIDTH, Chart, Drawing


@dataclass(frozen=True, slots=True)
class Series:
    """A named line or set of bars."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class PointSeries:
    """A named set of points, all above 0."""

    label: str
    points: tuple[tuple[float, float], ...]


def bar_chart(
    name: str,
    title: str,
    groups: Sequence[str],
    series: Sequence[Series],
    *,
    maximum: float,
    x_label: str,
    decimals: int = 3,
    missing_text: str = "no object of this class",
) -> Chart:
    """Return horizontal bars, one per series in each group; `missing_text` is the text of a missing value.

    The axis ends at the first tick that is not below `maximum`.
    """
    drawing = Drawing()
    thickness, gap = 11.0 if len(series) > 1 else 14.0, 3.0
    group_height = 20 + len(series) * (thickness + gap) + 8
    left, right = 8.0, WIDTH - 52.0
    top = 10.0 + 18 * (len(series) if len(series) > 1 else 0)
    if len(series) > 1:
        draw_legend(drawing, [one.label for one in series], left, 14.0)
    bottom = top + group_height * len(groups)
    ticks = linear_ticks(0.0, maximum)
    for tick in ticks:
        x = rescale(tick, ticks[0], ticks[-1], left, right)
        drawing.line(x, top, x, bottom, "grid")
        drawing.text(x, bottom + 16, format_tick(tick), "soft mid" if tick > ticks[0] else "soft")
    drawing.text(right, bottom + 34, x_label, "soft end")
    texts = [["none" if value is None else f"{value:.{decimals}f}" for value in one.values] for one in series]
    for row, group in enumerate(groups):
        base = top + row * group_height
        drawing.text(left, base + 14, group, "halo strong")
        for index, one in enumerate(series):
            y, value = base + 20 + index * (thickness + gap), one.values[row]
            if value is None:
                drawing.text(left + 4, y + thickness - 1, missing_text, "soft")
                continue
            x = rescale(value, ticks[0], ticks[-1], left, right)
            drawing.rectangle(left, y, x - left, thickness, f"f{index % SERIES_COLORS}")
            drawing.text(x + 5, y + thickness - 1.5, texts[index][row], "halo soft")
    described = [
        f"{group}: " + ", ".join(f"{one.label} {text[row]}" for one, text in zip(series, texts, strict=True))
        for row, group in enumerate(groups)
    ]
    return drawing.chart(name, title, f"{x_label}. {'; '.join(described)}.", bottom + 42)


def log_scatter_chart(
    name: str, title: str, series: Sequence[PointSeries], *, x_label: str, y_label: str, areas: Sequence[float] = ()
) -> Chart:
    """Return points on two logarithmic axes of equal range, with a line at each of `areas` (x times y)."""
    drawing, height = Drawing(), 440.0 + 18 * len(series)
    left, right, top, bottom = 50.0, WIDTH - 16.0, 30.0, 396.0
    values = [value for one in series for point in one.points for value in point]
    ticks = log_ticks(min(values), max(values))
    if len(ticks) < 2:
        ticks = [ticks[0], ticks[0] * 10]
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def position(x: float, y: float) -> tuple[float, float]:
        return rescale(math.log(x), low, high, left, right), rescale(math.log(y), low, high, bottom, top)

    for tick in ticks:
        x, y = position(tick, tick)
        drawing.line(left, y, right, y, "grid")
        drawing.line(x, top, x, bottom, "grid")
        drawing.text(left - 8, y + 4, format_tick(tick), "soft end")
        drawing.text(x, bottom + 16, format_tick(tick), "soft mid")
    for area in areas:
        first, last = max(ticks[0], area / ticks[-1]), min(ticks[-1], area / ticks[0])
        if first < last:
            drawing.polyline([position(first, area / first), position(last, area / last)], "front")
            x, y = position(first, area / first)
            drawing.text(x + 6, y + 14, f"{format_tick(math.sqrt(area))}²", "halo soft")
    for index, one in enumerate(series):
        drawing.points([position(*point) for point in one.points], f"d{index % SERIES_COLORS}")
    drawing.text(left, top - 14, y_label, "soft")
    drawing.text(right, bottom + 34, x_label, "soft end")
    draw_legend(drawing, [f"{one.label} ({len(one.points)})" for one in series], left, bottom + 48)
    values_text = "; ".join(f"{one.label}: {_median_text(one.points)}" for one in series)
    return drawing.chart(name, title, f"{y_label} against {x_label}, both logarithmic. {values_text}.", height)


def _median_text(points: Sequence[tuple[float, float]]) -> str:
    """Return the number of points and their median."""
    if not points:
        return "none"
    across, down = (sorted(values)[len(points) // 2] for values in zip(*points, strict=True))
    return f"{len(points)} points, median {format_value(across)} and {format_value(down)}"


def draw_legend(drawing: Drawing, labels: Sequence[str], x: float, y: float) -> None:
    """Draw the labels of the series, one below the other."""
    for index, label in enumerate(labels):
        drawing.rectangle(x, y - 9 + 18 * index, 10.0, 10.0, f"f{index % SERIES_COLORS}")
        drawing.text(x + 16, y + 18 * index, label)
