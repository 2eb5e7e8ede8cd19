"""Page check.html, and the same contents as text for a terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.core.files import write_json, write_text
from ifkd.core.html.chart import PointSeries, Series, bar_chart, log_scatter_chart
from ifkd.core.html.colors import class_color, hex_color
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.svg import Chart
from ifkd.core.html.table import Table
from ifkd.data.check.check import CheckedDataset
from ifkd.data.check.check_record import LARGE_PX, SMALL_PX, CheckRecord, object_sides
from ifkd.data.check.finding import Finding, Severity
from ifkd.data.check.page_pictures import PagePicture, duplicate_pictures, invalid_box_pictures, sample_pictures
from ifkd.imagery.contrast import ImageryOptions

PAGE, RECORD = "check.html", "check.json"
MAX_CLASSES_DRAWN = 60
MAX_DOTS = 4000
MAX_SIZE_ROWS = 12
LABELS: dict[Severity, str] = {"error": "Error", "warning": "Warning", "note": "Note"}
CSS_CLASSES: dict[Severity, str] = {"error": "failed", "warning": "warning", "note": "info"}
MARKS: dict[Severity, str] = {"error": "✗", "warning": "!", "note": "·"}
INVALID = "A few images of each kind; the boxes concerned are red and crossed, the others gray."
PAIRS = "Side by side, identical ones first. Compare them by eye: near duplicates need not show one scene."
SAMPLES = "The rarest classes of each split come first. Ignored regions are gray."


@dataclass(frozen=True, slots=True)
class PictureSection:
    """A section of pictures."""

    anchor: str
    title: str
    description: str
    pictures: list[PagePicture]


def templates() -> Any:
    """Return the environment of the page's template.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return jinja_environment("ifkd.data.check", need="The page of `ifkd data check`")


def write_check(checked: CheckedDataset, record: CheckRecord, folder: Path, *, imagery: ImageryOptions) -> None:
    """Write check.json and check.html into `folder`; the `record` may have the fixed copy, `imagery` is for the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder is not writable.
    """
    sections = [
        PictureSection("invalid-boxes", "Invalid boxes", INVALID, invalid_box_pictures(checked, imagery)),
        PictureSection("across", "Duplicates across splits", PAIRS, duplicate_pictures(checked, imagery, across=True)),
        PictureSection("within", "Duplicates in one split", PAIRS, duplicate_pictures(checked, imagery, across=False)),
        PictureSection("samples", "Samples", SAMPLES, sample_pictures(checked, imagery)),
    ]
    has_error = any(one.severity == "error" for one in record.findings)
    values = {
        "record": record,
        "style": style_sheet(),
        "headline": headline(record),
        "verdict_class": "passed" if record.clean else "failed" if has_error else "warning",
        "badge": "Clean" if record.clean else "Findings",
        "severity_labels": LABELS,
        "severity_classes": CSS_CLASSES,
        "severity_marks": MARKS,
        "summary": _summary(record),
        "splits": _split_table(record),
        "classes": _class_table(record),
        "files": [_size_table(record), _format_table(record)],
        "charts": _charts(checked, record),
        "swatches": [(name, hex_color(class_color(label))) for label, name in enumerate(record.classes)],
        "sections": [section for section in sections if section.pictures],
    }
    page = templates().get_template("check.html.j2").render(values)
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_text(folder / PAGE, page)


def headline(record: CheckRecord) -> str:
    """Return the result in one sentence."""
    images = sum(split.images for split in record.splits)
    contents = f"{_counted(images, 'image')} in {_counted(len(record.splits), 'split')}"
    if record.clean:
        return f"{contents}: no errors and no warnings."
    kinds = {severity: sum(one.severity == severity for one in record.findings) for severity in LABELS}
    kinds.pop("note")
    counts = [_counted(count, f"kind of {name}", f"kinds of {name}s") for name, count in kinds.items() if count]
    return f"{contents}: {' and '.join(counts)}."


def console(record: CheckRecord) -> str:
    """Return tables and findings as plain text."""
    parts = [_split_table(record).plain(), _class_table(record).plain()]
    files = (_size_table(record), _format_table(record))
    parts += [f"{table.caption}\n{table.plain()}" for table in files if table.rows]
    if record.findings:
        parts.append("\n".join(line for one in record.findings for line in _lines(one)))
    parts.append(headline(record))
    return "\n\n".join(parts)


def _lines(finding: Finding) -> list[str]:
    lines = [f"{LABELS[finding.severity]}, {finding.split}: {finding.count} {finding.title}"]
    lines += [f"    {one}" for one in finding.examples[:3]]
    if finding.count > 3:
        lines.append(f"    … {finding.count - 3} more")
    lines += [f"  {finding.suggestion}"] if finding.suggestion else []
    fix = "" if finding.fix is None else f" With --fix: {finding.fix}."
    return [*lines, f"  {finding.hint}{fix}"]


def _split_table(record: CheckRecord) -> Table:
    rows = []
    for split in record.splits:
        sizes = split.object_sizes
        cells: tuple[str, ...] = ("–",) * 4
        if sizes is not None:
            fractions = (f"{one:.0%}" for one in (sizes.small, sizes.medium, sizes.large))
            cells = (f"{sizes.median:.0f} ({sizes.p05:.0f} to {sizes.p95:.0f})", *fractions)
        counts = (split.listed, split.images, split.empty_images, split.objects, split.ignored)
        rows.append((split.name, *(f"{count}" for count in counts), *cells))
    counts_headings = ("Images listed", "Usable", "Without objects", "Objects", "Ignored")
    headings = ("Split", *counts_headings, "Size px (5 to 95 %)", "Small", "Medium", "Large")
    return Table("Contents of the splits", headings, (False, *(True,) * 9), tuple(rows))


def _class_table(record: CheckRecord) -> Table:
    names = [split.name for split in record.splits]
    rows = [(name, *(f"{split.per_class[name]}" for split in record.splits)) for name in record.classes]
    return Table("Objects by class", ("Class", *names), (False, *(True,) * len(names)), tuple(rows))


def _size_table(record: CheckRecord) -> Table:
    sizes = list(record.image_sizes.items())
    rows = [(size, f"{count}") for size, count in sizes[:MAX_SIZE_ROWS]]
    others = [count for _, count in sizes[MAX_SIZE_ROWS:]]
    if others:
        rows.append((f"{len(others)} other sizes", f"{sum(others)}"))
    return Table("Image sizes", ("Width x height, px", "Images"), (False, True), tuple(rows))


def _format_table(record: CheckRecord) -> Table:
    rows = tuple((name, f"{count}") for name, count in record.image_formats.items())
    return Table("Formats and bit depths", ("Format, data type, bands", "Images"), (False, True), rows)


def _summary(record: CheckRecord) -> list[dict[str, str]]:
    """Return the figures at the top of the page."""
    keys = ("listed", "images", "objects")
    listed, images, objects = (sum(getattr(split, key) for split in record.splits) for key in keys)
    count = sum(one.count for one in record.findings if one.severity != "note")
    classes = _counted(len(record.classes), "class", "classes")
    return [
        {"figure": f"{images}", "label": "usable images", "condition": f"of {listed} listed"},
        {"figure": f"{objects}", "label": "objects", "condition": f"of {classes}"},
        {"figure": f"{count}", "label": "mistakes", "condition": "all errors and warnings"},
    ]


def _charts(checked: CheckedDataset, record: CheckRecord) -> list[Chart]:
    charts = []
    counts = [(name, [split.per_class[name] for split in record.splits]) for name in record.classes]
    drawn = sorted(counts, key=lambda item: -sum(item[1]))[:MAX_CLASSES_DRAWN]
    if drawn:
        series = [
            Series(split.name, tuple(float(values[index]) for _, values in drawn))
            for index, split in enumerate(record.splits)
        ]
        most = max(1.0, *(value for one in series for value in one.values if value is not None))
        title = "Objects by class" if len(drawn) == len(counts) else f"The {len(drawn)} most frequent classes"
        names = [name for name, _ in drawn]
        charts.append(bar_chart("classes", title, names, series, maximum=most, x_label="objects", decimals=0))
    sides_of = {split: object_sides(checked.images, split) for split in checked.splits}
    sizes = [PointSeries(key, tuple(one[:: -(-len(one) // MAX_DOTS)])) for key, one in sides_of.items() if one]
    if sizes:
        areas, labels = (SMALL_PX**2, LARGE_PX**2), {"x_label": "width px", "y_label": "height px"}
        charts.append(log_scatter_chart("boxes", "Box sizes", sizes, areas=areas, **labels))
    return charts


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"
