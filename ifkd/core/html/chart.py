"""What charts are made of: SVG whose text scales and can be read aloud, in colors that follow light and dark.

A chart is drawn for a width of 440 units, which a phone shows at nearly its full size. Color never stands alone:
every series is also named beside its mark or in a legend.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440.0
GLYPH = 6.3
"""Mean width of a character at the charts' font size, for leaving room."""
SERIES = 6

STYLE = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
.chart .soft{fill:var(--soft)}.chart .strong{font-weight:600}.chart .end{text-anchor:end}.chart .mid{text-anchor:middle}
.chart .grid{stroke:var(--line);stroke-width:1}.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .front{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 4}
.chart .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
""" + "".join(
    f".chart .f{i}{{fill:var(--s{i})}}.chart .l{i}{{fill:none;stroke:var(--s{i});stroke-width:2}}"
    f".chart .d{i}{{fill:none;stroke:var(--s{i});stroke-width:3.6;stroke-linecap:round;stroke-opacity:.5}}"
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
        """Return the chart as an SVG element; a standalone one brings its colors along."""
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
class Pen:
    """The elements of a drawing, added one by one; positions in the chart's units."""

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, css: str = "") -> None:
        """Write words from (x, y) on."""
        css = f' class="{css}"' if css else ""
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{css}>{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """Draw a straight line."""
        self.parts.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, css: str, *, round_px: float = 2.0, opacity: float = 1.0
    ) -> None:
        """Draw a filled rectangle; a negative width is none."""
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}" rx="{round_px:g}" '
            f'class="{css}"{faint}/>'
        )

    def dot(self, x: float, y: float, radius: float, css: str, *, opacity: float = 1.0) -> None:
        """Draw a filled circle."""
        faint = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{radius:g}" class="{css}"{faint}/>')

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draw a line through points."""
        steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(f'<path d="M{steps}" class="{css}"/>')

    def area(self, points: Sequence[tuple[float, float]], css: str, *, opacity: float) -> None:
        """Fill what a line through points encloses."""
        steps = " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(f'<path d="M{steps}Z" class="{css}" opacity="{opacity:g}"/>')

    def dots(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Draw many points as one element; those that fall together are drawn once."""
        steps = "".join(dict.fromkeys(f"M{_n(x)} {_n(y)}h0" for x, y in points))
        self.parts.append(f'<path d="{steps}" class="{css}"/>')

    def done(self, name: str, title: str, description: str, height: float) -> Chart:
        """Return what was drawn."""
        return Chart(name, title, description, height, "".join(self.parts))


@dataclass(frozen=True, slots=True)
class Series:
    """A named line or set of bars."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Cloud:
    """A named set of points, all above 0."""

    label: str
    points: tuple[tuple[float, float], ...]


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
    pen = Pen()
    thick, gap = (11.0, 3.0) if len(series) > 1 else (14.0, 3.0)
    group_height = 20 + len(series) * (thick + gap) + 8
    left, right = 8.0, WIDTH - 52.0
    top = 10.0 + 18 * (len(series) if len(series) > 1 else 0)
    if len(series) > 1:
        legend(pen, [one.label for one in series], left, 14.0)
    bottom = top + group_height * len(groups)
    ticks = round_ticks(0.0, most)
    for tick in ticks:
        x = scaled(tick, ticks[0], ticks[-1], left, right)
        pen.line(x, top, x, bottom, "grid")
        pen.text(x, bottom + 16, tick_word(tick), "soft mid" if tick > ticks[0] else "soft")
    pen.text(right, bottom + 34, x_label, "soft end")
    for row, group in enumerate(groups):
        base = top + row * group_height
        pen.text(left, base + 14, group, "halo strong")
        for index, one in enumerate(series):
            y, value = base + 20 + index * (thick + gap), one.values[row]
            if value is None:
                pen.text(left + 4, y + thick - 1, absent, "soft")
                continue
            x = scaled(value, ticks[0], ticks[-1], left, right)
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


def clouds(
    name: str, title: str, series: Sequence[Cloud], *, x_label: str, y_label: str, areas: Sequence[float] = ()
) -> Chart:
    """Return points on two logarithmic axes of one scale, with a line for each of `areas` (x times y)."""
    pen, height = Pen(), 440.0 + 18 * len(series)
    left, right, top, bottom = 50.0, WIDTH - 16.0, 30.0, 396.0
    values = [value for one in series for point in one.points for value in point]
    ticks = log_ticks(min(values), max(values))
    if len(ticks) < 2:
        ticks = [ticks[0], ticks[0] * 10]
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        return scaled(math.log(x), low, high, left, right), scaled(math.log(y), low, high, bottom, top)

    for tick in ticks:
        x, y = place(tick, tick)
        pen.line(left, y, right, y, "grid")
        pen.line(x, top, x, bottom, "grid")
        pen.text(left - 8, y + 4, tick_word(tick), "soft end")
        pen.text(x, bottom + 16, tick_word(tick), "soft mid")
    for area in areas:
        first, last = max(ticks[0], area / ticks[-1]), min(ticks[-1], area / ticks[0])
        if first < last:
            pen.path([place(first, area / first), place(last, area / last)], "front")
            x, y = place(first, area / first)
            pen.text(x + 6, y + 14, f"{tick_word(math.sqrt(area))}²", "halo soft")
    for index, one in enumerate(series):
        pen.dots([place(*point) for point in one.points], f"d{index % SERIES}")
    pen.text(left, top - 14, y_label, "soft")
    pen.text(right, bottom + 34, x_label, "soft end")
    legend(pen, [f"{one.label} ({len(one.points)})" for one in series], left, bottom + 48)
    told = "; ".join(f"{one.label}: {_middle(one.points)}" for one in series)
    return pen.done(name, title, f"{y_label} against {x_label}, both logarithmic. {told}.", height)


def _middle(points: Sequence[tuple[float, float]]) -> str:
    """Return the median point in words."""
    if not points:
        return "none"
    across, down = (sorted(values)[len(points) // 2] for values in zip(*points, strict=True))
    return f"{len(points)} points, in the middle {short(across)} and {short(down)}"


def legend(pen: Pen, labels: Sequence[str], x: float, y: float) -> None:
    """Name the series, one below the other."""
    for index, label in enumerate(labels):
        pen.box(x, y - 9 + 18 * index, 10.0, 10.0, f"f{index % SERIES}")
        pen.text(x + 16, y + 18 * index, label)


def y_axis(pen: Pen, ticks: Sequence[float], left: float, right: float, top: float, bottom: float) -> None:
    """Draw a line for each tick and its figure on the left."""
    for tick in ticks:
        y = scaled(tick, ticks[0], ticks[-1], bottom, top)
        pen.line(left, y, right, y, "grid")
        pen.text(left - 8, y + 4, tick_word(tick), "soft end")


def x_axis(pen: Pen, ticks: Sequence[float], left: float, right: float, bottom: float) -> None:
    """Draw the axis and the ticks' figures below it."""
    pen.line(left, bottom, right, bottom, "axis")
    for tick in ticks:
        pen.text(scaled(tick, ticks[0], ticks[-1], left, right), bottom + 16, tick_word(tick), "soft mid")


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers, about `count`, that enclose [low, high]."""
    span = max(high - low, 1e-9)
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, … that enclose [low, high]; powers of ten alone when there would be many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max(index for index, tick in enumerate(every) if tick <= low * 1.0000001)
    stop = min(index for index, tick in enumerate(every) if tick >= high * 0.9999999)
    return every[start : stop + 1]


def scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    """Return where a value of [low, high] lies between start and end."""
    return start + (value - low) / (high - low) * (end - start)


def tick_word(value: float) -> str:
    """Return a tick's figure."""
    return f"{value:g}"


def short(value: float) -> str:
    """Return a figure of about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _n(value: float) -> str:
    """Return a coordinate to a tenth, which is finer than any screen shows."""
    return f"{value:.1f}".removesuffix(".0")
