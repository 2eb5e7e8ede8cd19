"""Axes of a chart: positions of values, grid lines, ticks and labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ifkd.core.html.svg import Drawing


@dataclass(frozen=True, slots=True)
class Axes:
    """A plot area; its edges are in the chart's units, its ticks are values from the first to the last."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log_y: bool = False

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a pair of values in the chart's units."""
        y_range = self.y_ticks[0], self.y_ticks[-1]
        if self.log_y:
            y, y_range = math.log(y), (math.log(y_range[0]), math.log(y_range[1]))
        across = rescale(x, self.x_ticks[0], self.x_ticks[-1], self.left, self.right)
        return across, rescale(y, *y_range, self.bottom, self.top)

    def draw(self, drawing: Drawing, *, x_label: str = "", y_label: str = "") -> None:
        """Draw grid lines, ticks and labels."""
        self.draw_y_ticks(drawing)
        drawing.line(self.left, self.bottom, self.right, self.bottom, "axis")
        for tick in self.x_ticks:
            x, _ = self.position(tick, self.y_ticks[0])
            drawing.text(x, self.bottom + 16, format_tick(tick), "soft mid")
        if y_label:
            drawing.text(self.left, self.top - 14, y_label, "soft")
        if x_label:
            drawing.text(self.right, self.bottom + 34, x_label, "soft end")

    def draw_y_ticks(self, drawing: Drawing) -> None:
        """Draw a grid line and a label on the left for each tick of the y-axis."""
        for tick in self.y_ticks:
            _, y = self.position(self.x_ticks[0], tick)
            drawing.line(self.left, y, self.right, y, "grid")
            drawing.text(self.left - 8, y + 4, format_tick(tick), "soft end")


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that enclose [low, high]."""
    span = max(high - low, 1e-9)
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2, 5, 10, … that enclose [low, high]; only powers of ten for a range of many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max(index for index, tick in enumerate(every) if tick <= low * 1.0000001)
    stop = min(index for index, tick in enumerate(every) if tick >= high * 0.9999999)
    return every[start : stop + 1]


def rescale(value: float, low: float, high: float, start: float, end: float) -> float:
    """Return a value of [low, high] mapped linearly to [start, end]."""
    return start + (value - low) / (high - low) * (end - start)


def format_tick(value: float) -> str:
    """Return the label of a tick."""
    return f"{value:g}"


def format_value(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
