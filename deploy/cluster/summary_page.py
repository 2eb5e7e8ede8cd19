"""Write the summary of a batch run: summary.json and summary.html."""

from pathlib import Path
from urllib.parse import quote

from deploy.cluster.summary import SceneEntry, Summary
from deploy.scene.write.file_names import MAP_FILE, SUMMARY_FILE, SUMMARY_PAGE_FILE
from ifkd.core.files import write_json, write_text
from ifkd.core.html.chart import Series, bar_chart
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.table import Table

MAX_CLASSES = 40
"""Classes in the chart."""
TEMPLATES = "The summary of a batch run"


def write_summary(summary: Summary, folder: Path) -> None:
    """Write summary.json and summary.html into `folder`.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder is not writable.
    """
    write_text(folder / SUMMARY_PAGE_FILE, render(summary))
    write_json(folder / SUMMARY_FILE, summary.model_dump(mode="json"))


def require_templates() -> None:
    """Check that the page can be rendered.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja_environment("deploy.cluster", need=TEMPLATES)


def render(summary: Summary) -> str:
    """Return the page as HTML."""
    template = jinja_environment("deploy.cluster", need=TEMPLATES).get_template("summary.html.j2")
    per_class = summary.objects_per_class
    names = sorted(per_class, key=lambda name: (-per_class[name], name))[:MAX_CLASSES]
    counts = tuple(float(per_class[name]) for name in names)
    charts = []
    if any(counts):
        series, title = [Series("objects", counts)], "Objects by class"
        charts.append(bar_chart("classes", title, names, series, maximum=counts[0], x_label="objects", decimals=0))
    return template.render(
        style=style_sheet(),
        summary=summary,
        tone="passed" if summary.verdict is None else ("failed" if summary.failed else "warning"),
        badge="Done" if summary.verdict is None else "Incomplete",
        headline=summary.verdict or f"All {summary.scenes} scenes are complete",
        tiles=_tiles(summary),
        failed=[entry for entry in summary.entries if entry.state == "failed"],
        incomplete=[entry for entry in summary.entries if entry.unreadable_tiles],
        scenes=_scenes(summary),
        engines=summary.engines.model_dump(exclude_none=True),
        map_file=MAP_FILE,
        links={entry.name: quote(entry.name) for entry in summary.entries},
        charts=charts,
    )


def _tiles(summary: Summary) -> list[dict[str, str]]:
    earlier = f", {summary.from_earlier_run} of them by an earlier run" if summary.from_earlier_run else ""
    speed = f"{summary.megapixels_per_second:.1f} Mpx/s, {summary.seconds:.0f} s in total"
    return [
        {"figure": f"{summary.done}", "label": "scenes completed", "condition": f"of {summary.scenes}{earlier}"},
        {"figure": f"{summary.objects}", "label": "objects", "condition": f"in {summary.tiles} tiles"},
        {"figure": f"{summary.km2:,.0f}", "label": "km²", "condition": f"{summary.megapixels:,.0f} million pixels"},
        {"figure": f"{summary.km2_per_hour:,.0f}", "label": "km² per hour", "condition": speed},
        {"figure": f"{summary.retried_row_ranges}", "label": "row ranges retried", "condition": "after lost engines"},
        {"figure": f"{summary.unreadable_tiles}", "label": "unreadable tiles", "condition": "of all scenes"},
    ]


def _scenes(summary: Summary) -> Table:
    headings = ("Scene", "State", "Pixels", "km²", "Objects", "Unreadable tiles", "Retries", "Seconds")
    return Table("Scenes", headings, (False, False, *[True] * 6), tuple(map(_row, summary.entries)))


def _row(entry: SceneEntry) -> tuple[str, ...]:
    if entry.state == "failed":
        return (entry.name, "failed", *["–"] * 6)
    return (
        entry.name,
        "done",
        f"{entry.width_px} × {entry.height_px}",
        "–" if entry.km2 is None else f"{entry.km2:.3g}",
        f"{entry.objects}",
        f"{entry.unreadable_tiles}",
        f"{entry.retried_row_ranges}",
        f"{entry.seconds.get('total', 0.0):.1f}",
    )
