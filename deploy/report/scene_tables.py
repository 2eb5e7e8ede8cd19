"""Tables of a scene's operational figures: probability of detection and false alarms per km²."""

from deploy.report.tables import ABSENT, make_table
from deploy.scene.operational_figures import SIZES, DetectionRates, OperationalFigures
from deploy.scene.scene_score import SceneScore
from ifkd.core.html.table import Table
from ifkd.data.intervals import Interval

COLUMNS = "Detected | Objects | Probability of detection | False alarms | False alarms per km²"


def operational_tables(score: SceneScore | None) -> list[Table]:
    """Return the tables of a score; none without figures."""
    figures = None if score is None else score.operational
    return [] if figures is None else [rates_table(figures), curve_table(figures)]


def rates_table(figures: OperationalFigures) -> Table:
    """Return the rates of all classes, of each class and of each size."""
    medium, large = (f"{limit:g} {figures.size_unit}" for limit in figures.size_limits)
    ranges = (f"below {medium}", f"{medium} to {large}", f"from {large}")
    rows = [("all classes", figures.total), ("all, of any class", figures.any_class), *figures.per_class.items()]
    rows += [(f"{name}, {words}", figures.per_size[name]) for name, words in zip(SIZES, ranges, strict=True)]
    return _table(f"Operational figures: {conditions(figures)}", ":Objects", rows)


def curve_table(figures: OperationalFigures) -> Table:
    """Return the rates of all classes over the score threshold."""
    rows = [(f"{point.score_threshold:g}", point.rates) for point in figures.curve]
    return _table("Operational figures over the score threshold", "Score from", rows)


def conditions(figures: OperationalFigures) -> str:
    """Return the conditions of the figures in words."""
    rule = f"IoU {figures.min_iou:g}" if figures.within_m is None else f"centers closer than {figures.within_m:g} m"
    area = "an unknown area" if figures.area_km2 is None else f"{figures.area_km2:.4g} km² searched"
    return f"score from {figures.score_threshold:g}, {rule}, {area}, {figures.confidence:.0%} intervals"


def operational_text(figures: OperationalFigures) -> str:
    """Return the rates as text for the terminal."""
    table = rates_table(figures)
    return f"{table.caption}\n{table.plain()}"


def _table(caption: str, first: str, rows: list[tuple[str, DetectionRates]]) -> Table:
    cells = [
        (
            name,
            str(rates.detected),
            str(rates.objects),
            _shown(rates.detection_probability, rates.detection_probability_interval, ".3f"),
            str(rates.false_alarms),
            _shown(rates.false_alarms_per_km2, rates.false_alarms_per_km2_interval, ".3g"),
        )
        for name, rates in rows
    ]
    table = make_table(caption, f"{first} | {COLUMNS}", cells)
    assert table is not None
    return table


def _shown(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None or interval is None:
        return ABSENT
    low, high = (format(limit, form) for limit in interval)
    return f"{value:{form}} ({low} to {high})"
