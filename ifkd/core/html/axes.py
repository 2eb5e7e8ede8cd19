"""Axes of a chart: positions of values, grid lines, ticks and labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ifkd.core.html.chart import Pen, scaled, tick_word, x_axis, y_axis


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
        return (
            scaled(x, self.x_ticks[0], self.x_ticks[-1], self.left, self.right),
            scaled(y, *y_range, self.bottom, self.top),
        )

    def draw(self, pen: Pen, *, x_label: str = "", y_label: str = "") -> None:
        """Draw grid lines, ticks and labels."""
        if self.log_y:
            for tick in self.y_ticks:
                _, y = self.position(self.x_ticks[0], tick)
                pen.line(self.left, y, self.right, y, "grid")
                pen.text(self.left - 8, y + 4, tick_word(tick), "soft end")
        else:
            y_axis(pen, self.y_ticks, self.left, self.right, self.top, self.bottom)
        x_axis(pen, self.x_ticks, self.left, self.right, self.bottom)
        if y_label:
            pen.text(self.left, self.top - 14, y_label, "soft")
        if x_label:
            pen.text(self.right, self.bottom + 34, x_label, "soft end")
