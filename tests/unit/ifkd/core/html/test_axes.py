"""Ticks and positions of axes."""

import math

import pytest

from ifkd.core.html.axes import Axes, linear_ticks, log_ticks
from ifkd.core.html.svg import Drawing


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 41.7, [0, 10, 20, 30, 40, 50]), (0, 0.003, [0, 0.001, 0.002, 0.003])],
)
def test_linear_ticks_are_round_and_enclose_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(float(low), float(high)) == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(0.9, 41), (1, 100), (0.0123, 900), (3, 3)])
def test_logarithmic_ticks_enclose_the_range(low: float, high: float) -> None:
    ticks = log_ticks(float(low), float(high))
    assert ticks[0] <= low * 1.001
    assert ticks[-1] >= high * 0.999
    assert ticks == sorted(set(ticks))


def test_positions_are_inside_the_plot_area() -> None:
    linear = Axes(10.0, 110.0, 20.0, 220.0, (0.0, 5.0, 10.0), (0.0, 1.0))
    assert linear.position(5.0, 0.25) == (60.0, 170.0)
    logarithmic = Axes(10.0, 110.0, 20.0, 220.0, (0.0, 10.0), (1.0, 10.0, 100.0), log_y=True)
    assert logarithmic.position(10.0, 10.0) == pytest.approx((110.0, 120.0))
    assert math.isclose(logarithmic.position(0.0, 100.0)[1], 20.0)


def test_every_tick_has_a_label() -> None:
    drawing = Drawing()
    Axes(10.0, 110.0, 20.0, 220.0, (0.0, 5.0), (0.0, 0.5, 1.0)).draw(drawing, x_label="x <m>", y_label="y")
    text = drawing.chart("name", "title", "description", 240.0).svg()
    assert [f">{label}</text>" in text for label in ("5", "0.5", "1", "x &lt;m&gt;", "y")] == [True] * 5
    assert text.count('class="grid"') == 3
