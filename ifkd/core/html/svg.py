"""SVG charts in the page's light or dark colors; every series also has a label, so that color is never the only cue."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440.0
"""Width of a chart, nearly its full size on a phone."""
CHARACTER_WIDTH = 6.3
"""Mean width of a character at the font size of charts."""
SERIES_COLORS = 6
"""Number of different series colors."""

STYLE = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
.chart .soft{fill:var(--soft)}.chart .strong{font-weight:600}.chart .end{text-anchor:end}.chart .mid{text-anchor:middle}
.chart .grid{stroke:var(--line);stroke-width:1}.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .front{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 4}
.chart .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
""" + "".join(
    f".chart .f{i}{{fill:var(--s{i})}}.chart .l{i}{{fill:none;stroke:var(--s{i});stroke-width:2}}"
    f".chart .d{i}{{fill:none;stroke:var(--s{i});stroke-width:3.6;stroke-linecap:round;stroke-opacity:.5}}"
    for i in range(SERIES_COLORS)
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
    """A finished chart with its title and description."""

    name: str
    """File name without suffix, and prefix of element ids."""
    title: str
    description: str
    """Text for screen readers."""
    height: float
    body: str

    def svg(self, *, standalone: bool = False) -> str:
        """Return the chart as an SVG element; a standalone one includes its style sheet."""
        style, head = "", 'class="chart"'
        if standalone:
            head += ' xmlns="http://www.w3.org/2000/svg"'
            dark = f"@media (prefers-color-scheme:dark){{svg{{{PALETTE_DARK};background:var(--card)}}}}"
            style = f"<style>svg{{{PALETTE_LIGHT};background:var(--card)}}{dark}{STYLE}</style>"
        identity = f"{self.name}-title"
        return (
            f'<svg {head} viewBox="0 0 {WIDTH:g} {_number(self.height)}" role="img" '
            f'aria-labelledby="{identity} {self.name}-desc">'
            f'<title id="{identity}">{escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{escape(self.description)}</desc>{style}{self.body}</svg>'
        )


@dataclass(slots=True)
class Drawing:
    """SVG elements of a chart; positions are in the chart's units."""

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, css: str = "") -> None:
        """Add text that starts at (x, y)."""
        css = f' class="{css}"' if css else ""
        self.parts.append(f'<text x="{_number(x)}" y="{_number(y)}"{css}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """Add a straight line."""
        ends = f'x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}"'
        self.parts.append(f'<line {ends} class="{css}"/>')

    def rectangle(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        css: str,
        *,
        corner_radius: float = 2.0,
        opacity: float = 1.0,
    ) -> None:
        """Add a filled rectangle; a negative width counts as 0."""
        size = f'width="{_number(max(width, 0))}" height="{_number(height)}" rx="{corner_radius:g}"'
        self.parts.append(f'<rect x="{_number(x)}" y="{_number(y)}" {size} class="{css}"{_opacity(opacity)}/>')

    def circle(self, x: float, y: float, radius: float, css: str, *, opacity: float = 1.0) -> None:
        """Add a filled circle."""
        center = f'cx="{_number(x)}" cy="{_number(y)}"'
        self.parts.append(f'<circle {center} r="{radius:g}" class="{css}"{_opacity(opacity)}/>')

    def polyline(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Add a line through points."""
        steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self.parts.append(f'<path d="M{steps}" class="{css}"/>')

    def polygon(self, points: Sequence[tuple[float, float]], css: str, *, opacity: float) -> None:
        """Add a filled polygon."""
        steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        self.parts.append(f'<path d="M{steps}Z" class="{css}" opacity="{opacity:g}"/>')

    def points(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Add many points as one element; points at the same rounded position are drawn once."""
        steps = "".join(dict.fromkeys(f"M{_number(x)} {_number(y)}h0" for x, y in points))
        self.parts.append(f'<path d="{steps}" class="{css}"/>')

    def chart(self, name: str, title: str, description: str, height: float) -> Chart:
        """Return the finished chart."""
        return Chart(name, title, description, height, "".join(self.parts))


def _number(value: float) -> str:
    """Return a coordinate rounded to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def _opacity(value: float) -> str:
    return f' opacity="{value:g}"' if value < 1 else ""
