"""Charts as SVG: text that scales and can be read aloud, colours by custom properties that follow light and dark.

A chart is drawn for a width of 440 units, which a phone shows at nearly its full size. Colour never stands alone:
every series is also named beside its mark or in a legend.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

WIDTH = 440.0
GLYPH = 6.3
"""Mean width of a character at the charts' font size, for leaving room."""
SERIES = 6
DOTS_DRAWN = 160

STYLE = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
.chart .soft{fill:var(--soft)}.chart .strong{font-weight:600}.chart .end{text-anchor:end}.chart .mid{text-anchor:middle}
.chart .grid{stroke:var(--line);stroke-width:1}.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .front{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 4}
.chart .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
""" + "".join(
    f".chart .f{i}{{fill:var(--s{i})}}.chart .l{i}{{fill:none;stroke:var(--s{i});stroke-width:2}}"
    for i in range(SERIES)
)

PALETTE_LIGHT = (
    "--ink:#1d2733;--soft:#5b6876;--line:#dfe4ea;--card:#ffffff;"
    "--s0:#2466a8;--s1:#b8480f;--s2:#147a5c;--s3:#7b4fa3;--s4:#8a6200;--s5:#a83a6d"
)
PALETTE_DARK = (
    "--ink:#e6ebf1;--soft:#9aa7b5;--line:#2c3744;--card:#18212b;"
    "--s0:#7fb6ee;--s1:#f29a6b;--s2:#5fcaa6;--s3:#c3a4e6;--s4:#dfba5c;--s5:#ec94ba"
)


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and what it says."""

    name: str
    """For its file, without an ending."""
    title: str
    description: str
    """What a reader sees in it, for those who cannot."""
    height: float
    body: str

    def svg(self, *, standalone: bool = False) -> str:
        """Return the chart as an SVG element; a standalone one brings its colours along."""
        style = ""
        head = 'class="chart"'
        if standalone:
            head += ' xmlns="http://www.w3.org/2000/svg"'
            dark = f"@media (prefers-color-scheme:dark){{svg{{{PALETTE_DARK};background:var(--card)}}}}"
            style = f"<style>svg{{{PALETTE_LIGHT};background:var(--card)}}{dark}{STYLE}</style>"
        identity = f"{self.name}-title"
        return (
            f'<svg {head} viewBox="0 0 {WIDTH:g} {_n(self.height)}" role="img" '
            f'aria-labelledby="{identity} {self.name}-desc">'
            f'<title id="{identity}">{escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>{style}{self.body}</svg>'
        )


@dataclass(slots=True)
class _Pen:
    """Elements of a drawing."""

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, css: str = "") -> None:
        css = f' class="{css}"' if css else ""
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{css}>{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.parts.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, css: str, *, round_px: float = 2.0, opacity: float = 1.0
    ) -> None:
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}" rx="{round_px:g}" '
            f'class="{css}"{faint}/>'
        )

    def dot(self, x: float, y: float, radius: float, css: str, *, opacity: float = 1.0) -> None:
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{radius:g}" class="{css}"{faint}/>')

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(f'<path d="M{steps}" class="{css}"/>')

    def done(self, name: str, title: str, description: str, height: float) -> Chart:
        return Chart(name, title, description, height, "".join(self.parts))


@dataclass(frozen=True, slots=True)
class Point:
    """A named point of a scatter."""

    label: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Series:
    """A named line or set of bars."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """All samples of one measurement."""

    label: str
    samples: tuple[float, ...]


def scatter(name: str, title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> Chart:
    """Return points where left and up are better, with the front of those that no other beats at both."""
    pen, height = _Pen(), 280.0
    left, right, top, bottom = 50.0, WIDTH - 16.0, 30.0, height - 44
    x_ticks = _ticks(0.0, max(point.x for point in points) * 1.15)
    low = min(point.y for point in points)
    high = max(point.y for point in points)
    margin = max((high - low) * 0.25, 0.01)
    y_ticks = _ticks(max(0.0, low - margin), min(1.0, high + margin))

    def place(point: Point) -> tuple[float, float]:
        return (
            _scaled(point.x, x_ticks[0], x_ticks[-1], left, right),
            _scaled(point.y, y_ticks[0], y_ticks[-1], bottom, top),
        )

    _y_axis(pen, y_ticks, left, right, top, bottom)
    _x_axis(pen, x_ticks, left, right, bottom)
    pen.text(left, top - 14, y_label, "soft")
    pen.text(right, height - 8, x_label, "soft end")
    front = pareto(points)
    if len(front) > 1:
        pen.path([place(point) for point in front], "front")
    taken: list[tuple[float, float, float]] = []
    for index, point in enumerate(points):
        x, y = place(point)
        pen.dot(x, y, 6.0, f"f{index % SERIES}")
        wide = len(point.label) * GLYPH
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
        pen.text(x - 10 if before else x + 10, level, point.label, "halo strong end" if before else "halo strong")
    told = "; ".join(f"{point.label}: {point.x:.4g} and {point.y:.3f}" for point in points)
    return pen.done(name, title, f"{x_label} against {y_label}. {told}.", height)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both directions (less x, more y), from left to right."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def strips(name: str, title: str, rows: Sequence[Strip], *, unit: str) -> Chart:
    """Return every measurement as a row: its samples as dots, the middle half as a band, the median as a line."""
    pen = _Pen()
    row_height, top = 46.0, 14.0
    left, right = 8.0, WIDTH - 62.0
    bottom = top + row_height * len(rows)
    highest = max(max(row.samples) for row in rows)
    lowest = min(min(row.samples) for row in rows)
    logarithmic = highest > 12 * lowest
    ticks = _log_ticks(lowest, highest) if logarithmic else _ticks(0.0, highest * 1.02)

    def place(value: float) -> float:
        if logarithmic:
            return _scaled(math.log(value), math.log(ticks[0]), math.log(ticks[-1]), left, right)
        return _scaled(value, ticks[0], ticks[-1], left, right)

    for tick in ticks:
        pen.line(place(tick), top, place(tick), bottom, "grid")
        pen.text(place(tick), bottom + 16, _tick_word(tick), "soft mid")
    for index, row in enumerate(rows):
        base = top + row_height * index
        css = f"f{index % SERIES}"
        p25, p50, p75 = (float(value) for value in np.percentile(row.samples, [25, 50, 75]))
        pen.text(left, base + 12, row.label, "halo strong")
        pen.box(place(p25), base + 19, max(place(p75) - place(p25), 1.5), 18.0, css, opacity=0.28)
        for order, sample in enumerate(_thinned(row.samples)):
            pen.dot(place(sample), base + 28 + 6 * _jitter(order), 1.6, css, opacity=0.55)
        pen.box(place(p50) - 1.25, base + 16, 2.5, 24.0, css, round_px=1.0)
        pen.text(WIDTH - 4, base + 32, f"{_short(p50)} {unit}", "end strong")
    scale = f"{unit}, logarithmic" if logarithmic else unit
    pen.text(right, bottom + 34, scale, "soft end")
    told = "; ".join(
        f"{row.label}: median {_short(float(np.median(row.samples)))} {unit} of {len(row.samples)} runs" for row in rows
    )
    return pen.done(name, title, f"{told}.", bottom + 42)


def lines(
    name: str, title: str, series: Sequence[Series], *, steps: Sequence[int], x_label: str, y_label: str
) -> Chart:
    """Return one line per series over named steps, evenly spaced."""
    pen, height = _Pen(), 250.0 + 18 * len(series)
    left, right, top, bottom = 50.0, WIDTH - 20.0, 30.0, 206.0
    highest = max(value for one in series for value in one.values if value is not None)
    ticks = _ticks(0.0, highest * 1.05)
    places = [
        _scaled(float(index), 0.0, max(len(steps) - 1.0, 1.0), left + 20, right - 12) for index in range(len(steps))
    ]
    _y_axis(pen, ticks, left, right, top, bottom)
    pen.text(left, top - 14, y_label, "soft")
    for x, step in zip(places, steps, strict=True):
        pen.text(x, bottom + 16, str(step), "soft mid")
    pen.text(right, bottom + 34, x_label, "soft end")
    for index, one in enumerate(series):
        points = [
            (x, _scaled(value, ticks[0], ticks[-1], bottom, top))
            for x, value in zip(places, one.values, strict=True)
            if value is not None
        ]
        pen.path(points, f"l{index % SERIES}")
        for x, y in points:
            pen.dot(x, y, 4.0, f"f{index % SERIES}")
    _legend(pen, [one.label for one in series], left, bottom + 48)
    told = "; ".join(
        f"{one.label}: "
        + ", ".join(
            f"{_short(value)} at {step}" for step, value in zip(steps, one.values, strict=True) if value is not None
        )
        for one in series
    )
    return pen.done(name, title, f"{y_label} by {x_label}. {told}.", height)


def bars(
    name: str,
    title: str,
    groups: Sequence[str],
    series: Sequence[Series],
    *,
    most: float,
    x_label: str,
    decimals: int = 3,
    absent: str = "no object of this class",
) -> Chart:
    """Return horizontal bars, one per series in each named group; `absent` stands for a missing value."""
    pen = _Pen()
    thick, gap = (11.0, 3.0) if len(series) > 1 else (14.0, 3.0)
    group_height = 20 + len(series) * (thick + gap) + 8
    left, right = 8.0, WIDTH - 52.0
    top = 10.0 + 18 * (len(series) if len(series) > 1 else 0)
    if len(series) > 1:
        _legend(pen, [one.label for one in series], left, 14.0)
    bottom = top + group_height * len(groups)
    ticks = _ticks(0.0, most)
    for tick in ticks:
        x = _scaled(tick, ticks[0], ticks[-1], left, right)
        pen.line(x, top, x, bottom, "grid")
        pen.text(x, bottom + 16, _tick_word(tick), "soft mid" if tick > ticks[0] else "soft")
    pen.text(right, bottom + 34, x_label, "soft end")
    for row, group in enumerate(groups):
        base = top + row * group_height
        pen.text(left, base + 14, group, "halo strong")
        for index, one in enumerate(series):
            y, value = base + 20 + index * (thick + gap), one.values[row]
            if value is None:
                pen.text(left + 4, y + thick - 1, absent, "soft")
                continue
            x = _scaled(value, ticks[0], ticks[-1], left, right)
            pen.box(left, y, x - left, thick, f"f{index % SERIES}")
            pen.text(x + 5, y + thick - 1.5, f"{value:.{decimals}f}", "halo soft")
    told = "; ".join(
        f"{group}: "
        + ", ".join(
            f"{one.label} {'none' if (value := one.values[row]) is None else f'{value:.{decimals}f}'}" for one in series
        )
        for row, group in enumerate(groups)
    )
    return pen.done(name, title, f"{x_label}. {told}.", bottom + 42)


def diverging(name: str, title: str, groups: Sequence[str], series: Sequence[Series], *, x_label: str) -> Chart:
    """Return horizontal bars to both sides of zero, one per series in each named group."""
    pen, thick, left, right = _Pen(), 12.0, 8.0, WIDTH - 8.0
    top = 10.0 + 18 * len(series)
    _legend(pen, [one.label for one in series], left, 14.0)
    most = max([0.002, *(abs(value) for one in series for value in one.values if value is not None)])
    middle, half = (left + right) / 2, (right - left) / 2 - 54
    height = 22 + len(series) * (thick + 3) + 6
    bottom = top + height * len(groups)
    pen.line(middle, top, middle, bottom, "axis")
    told = []
    for row, group in enumerate(groups):
        pen.text(left, top + row * height + 14, group, "halo strong")
        for index, one in enumerate(series):
            value, y = one.values[row], top + row * height + 22 + index * (thick + 3)
            if value is None:
                continue
            reach = abs(value) / most * half
            pen.box(middle - reach if value < 0 else middle, y, max(reach, 1.0), thick, f"f{index % SERIES}")
            css, edge = ("end ", middle - reach - 5) if value < 0 else ("", middle + max(reach, 1.0) + 5)
            pen.text(edge, y + thick - 2, f"{value:+.3f}", f"{css}halo soft")
            told.append(f"{group}, {one.label}: {value:+.4f}")
    pen.text(right, bottom + 16, x_label, "soft end")
    return pen.done(name, title, f"{x_label}. {'; '.join(told)}.", bottom + 24)


def _legend(pen: _Pen, labels: Sequence[str], x: float, y: float) -> None:
    for index, label in enumerate(labels):
        pen.box(x, y - 9 + 18 * index, 10.0, 10.0, f"f{index % SERIES}")
        pen.text(x + 16, y + 18 * index, label)


def _y_axis(pen: _Pen, ticks: Sequence[float], left: float, right: float, top: float, bottom: float) -> None:
    for tick in ticks:
        y = _scaled(tick, ticks[0], ticks[-1], bottom, top)
        pen.line(left, y, right, y, "grid")
        pen.text(left - 8, y + 4, _tick_word(tick), "soft end")


def _x_axis(pen: _Pen, ticks: Sequence[float], left: float, right: float, bottom: float) -> None:
    pen.line(left, bottom, right, bottom, "axis")
    for tick in ticks:
        pen.text(_scaled(tick, ticks[0], ticks[-1], left, right), bottom + 16, _tick_word(tick), "soft mid")


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers, about `count`, that enclose [low, high]."""
    span = max(high - low, 1e-9)
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, … that enclose [low, high]; powers of ten alone when there would be many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max(index for index, tick in enumerate(every) if tick <= low * 1.0000001)
    stop = min(index for index, tick in enumerate(every) if tick >= high * 0.9999999)
    return every[start : stop + 1]


def _scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


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


def _tick_word(value: float) -> str:
    return f"{value:g}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _n(value: float) -> str:
    """Return a coordinate to a tenth, which is finer than any screen shows."""
    return f"{value:.1f}".removesuffix(".0")
