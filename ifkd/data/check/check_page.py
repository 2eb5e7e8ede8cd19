"""check.html, and the same as lines for a terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.core.files import write_json, write_text
from ifkd.core.html.chart import PointSeries, Series, bar_chart, log_scatter_chart
from ifkd.core.html.colors import class_color, hex_color
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.svg import Chart
from ifkd.core.html.table import Table
from ifkd.data.check.check import LARGE_PX, SMALL_PX, Checked, object_sides
from ifkd.data.check.check_record import CheckRecord
from ifkd.data.check.finding import Finding, Severity
from ifkd.data.check.page_pictures import PagePicture, pairs, samples, troubled
from ifkd.imagery.image_files import Imagery

PAGE, RECORD = "check.html", "check.json"
MOST_CLASSES_DRAWN = 60
MOST_DOTS = 4000
MOST_ROWS = 12
WORDS: dict[Severity, str] = {"error": "Error", "warning": "Warning", "note": "Note"}
TONES: dict[Severity, str] = {"error": "failed", "warning": "reserved", "note": "info"}
MARKS: dict[Severity, str] = {"error": "✗", "warning": "!", "note": "·"}


@dataclass(frozen=True, slots=True)
class Sheet:
    """Pictures of one sort."""

    anchor: str
    title: str
    words: str
    pictures: tuple[PagePicture, ...]


def templates() -> Any:
    """Return the environment of the page's template.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return jinja_environment("ifkd.data.check", need="The page of `ifkd data check`")


def write_check(checked: Checked, record: CheckRecord, folder: Path, *, imagery: Imagery) -> list[Path]:
    """Write check.json and check.html into `folder`, and return their paths.

    Args:
        checked: The data set.
        record: What check.json holds: the data set's record, with the cleaned copy's where there is one.
        folder: Where.
        imagery: How images are read for the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The folder cannot be written.
    """
    page = render(checked, record, imagery)
    write_json(folder / RECORD, record.model_dump(mode="json"))
    write_text(folder / PAGE, page)
    return [folder / RECORD, folder / PAGE]


def render(checked: Checked, record: CheckRecord, imagery: Imagery) -> str:
    """Return the page as HTML."""
    sheets = (
        Sheet(
            "troubled",
            "Boxes that are wrong",
            "A few images of each kind; the boxes concerned are red and crossed, the others gray.",
            tuple(troubled(checked, imagery)),
        ),
        Sheet(
            "across",
            "Images shared by splits",
            "Side by side, equal ones first. Whether two pictures show one place is for eyes to judge.",
            tuple(pairs(checked, imagery, across=True)),
        ),
        Sheet(
            "within",
            "Images that occur again in their split",
            "Side by side, equal ones first.",
            tuple(pairs(checked, imagery, across=False)),
        ),
        Sheet(
            "samples",
            "Samples",
            "Chosen so that every class of every split is seen as far as there is room. Ignored regions are gray.",
            tuple(samples(checked, imagery)),
        ),
    )
    view = {
        "record": record,
        "style": style_sheet(),
        "headline": headline(record),
        "tone": _tone(record),
        "badge": "Clean" if record.clean else "Findings",
        "findings": record.findings,
        "words": WORDS,
        "tones": TONES,
        "marks": MARKS,
        "tiles": _tiles(record),
        "splits": split_table(record),
        "classes": class_table(record),
        "files": [_size_table(record), _form_table(record)],
        "charts": _charts(checked, record),
        "swatches": [(name, hex_color(class_color(label))) for label, name in enumerate(record.classes)],
        "sheets": [sheet for sheet in sheets if sheet.pictures],
    }
    page: str = templates().get_template("check.html.j2").render(view)
    return page


def headline(record: CheckRecord) -> str:
    """Return what was found, in one sentence."""
    images = sum(split.images for split in record.splits)
    what = f"{_counted(images, 'image')} in {_counted(len(record.splits), 'split')}"
    if record.clean:
        return f"{what}: nothing was found that training or evaluation would stumble over."
    errors = sum(one.severity == "error" for one in record.findings)
    warnings = sum(one.severity == "warning" for one in record.findings)
    counts = [_counted(errors, "kind of error", "kinds of errors")] if errors else []
    counts += [_counted(warnings, "kind of warning", "kinds of warnings")] if warnings else []
    return f"{what}: {' and '.join(counts)}."


def console(record: CheckRecord) -> str:
    """Return tables and findings as plain text."""
    parts = [split_table(record).plain(), class_table(record).plain()]
    files = [_size_table(record), _form_table(record)]
    parts += [f"{table.caption}\n{table.plain()}" for table in files if table.rows]
    if record.findings:
        parts.append("\n".join(line for one in record.findings for line in _lines(one)))
    parts.append(headline(record))
    return "\n\n".join(parts)


def _lines(finding: Finding) -> list[str]:
    lines = [f"{WORDS[finding.severity]}, {finding.split}: {finding.count} {finding.title}"]
    lines += [f"    {one}" for one in finding.examples[:3]]
    if finding.count > 3:
        lines.append(f"    … {finding.count - 3} more")
    lines += [f"  {finding.suggestion}"] if finding.suggestion else []
    return [*lines, f"  {hint_words(finding)}"]


def hint_words(finding: Finding) -> str:
    """Return how to mend a finding, and what --fix does."""
    return finding.hint if finding.fix is None else f"{finding.hint} With --fix: {finding.fix}."


def split_table(record: CheckRecord) -> Table:
    """Return the splits with what they hold."""
    sides = {side.split: side for side in record.sides}
    rows = []
    for split in record.splits:
        side = sides.get(split.name)
        figures = ("–",) * 4
        if side is not None:
            figures = (
                f"{side.median:.0f} ({side.p05:.0f} to {side.p95:.0f})",
                f"{side.small:.0%}",
                f"{side.medium:.0%}",
                f"{side.large:.0%}",
            )
        counts = (split.listed, split.images, split.empty_images, split.objects, split.ignored)
        rows.append((split.name, *(f"{count}" for count in counts), *figures))
    headings = (
        "Split",
        "Images listed",
        "Usable",
        "Without objects",
        "Objects",
        "Ignored",
        "Side px (5 to 95 %)",
        "Small",
        "Medium",
        "Large",
    )
    return Table("What each split holds", headings, (False, *(True,) * 9), tuple(rows))


def class_table(record: CheckRecord) -> Table:
    """Return the objects of each class and split."""
    names = [split.name for split in record.splits]
    rows = [(name, *(f"{split.per_class[name]}" for split in record.splits)) for name in record.classes]
    return Table("Objects by class", ("Class", *names), (False, *(True,) * len(names)), tuple(rows))


def _size_table(record: CheckRecord) -> Table:
    rows = [(f"{one.width} × {one.height}", f"{one.images}") for one in record.sizes[:MOST_ROWS]]
    if len(record.sizes) > MOST_ROWS:
        rest = record.sizes[MOST_ROWS:]
        rows.append((f"{len(rest)} other sizes", f"{sum(one.images for one in rest)}"))
    return Table("Image sizes", ("Width × height, px", "Images"), (False, True), tuple(rows))


def _form_table(record: CheckRecord) -> Table:
    rows = [(one.form, f"{one.images}") for one in record.forms]
    return Table("Formats and bit depths", ("Format, values, bands", "Images"), (False, True), tuple(rows))


def _tiles(record: CheckRecord) -> list[dict[str, str]]:
    images, objects = (sum(getattr(split, key) for split in record.splits) for key in ("images", "objects"))
    listed = sum(split.listed for split in record.splits)
    found = sum(one.count for one in record.findings if one.severity != "note")
    classes = _counted(len(record.classes), "class", "classes")
    return [
        {"figure": f"{images}", "label": "images that can be used", "condition": f"of {listed} listed"},
        {
            "figure": f"{objects}",
            "label": "objects",
            "condition": f"of {classes}",
        },
        {"figure": f"{found}", "label": "places to mend", "condition": "errors and warnings, one by one"},
    ]


def _tone(record: CheckRecord) -> str:
    if record.clean:
        return "passed"
    return "failed" if any(one.severity == "error" for one in record.findings) else "reserved"


def _charts(checked: Checked, record: CheckRecord) -> list[Chart]:
    found = []
    counts = [(name, [split.per_class[name] for split in record.splits]) for name in record.classes]
    drawn = sorted(counts, key=lambda item: -sum(item[1]))[:MOST_CLASSES_DRAWN]
    if drawn:
        series = [
            Series(split.name, tuple(float(values[index]) for _, values in drawn))
            for index, split in enumerate(record.splits)
        ]
        most = max(1.0, *(value for one in series for value in one.values if value is not None))
        names = [name for name, _ in drawn]
        title = "Objects by class" if len(drawn) == len(counts) else f"The {len(drawn)} most frequent classes"
        found.append(bar_chart("classes", title, names, series, most=most, x_label="objects", decimals=0))
    sizes = []
    for split in checked.splits:
        sides = object_sides(checked.images, split)
        if sides:
            step = -(-len(sides) // MOST_DOTS)
            sizes.append(PointSeries(split, tuple(sides[::step])))
    if sizes:
        found.append(
            log_scatter_chart(
                "boxes",
                "Box sizes",
                sizes,
                x_label="width px",
                y_label="height px",
                areas=(SMALL_PX**2, LARGE_PX**2),
            )
        )
    return found


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"
