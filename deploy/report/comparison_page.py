"""Render a comparison of reports as HTML and Markdown; equal input gives equal bytes."""

from deploy.report.compare import ABSENT, ChangeState, ComparedFigure, Comparison
from ifkd.core.html.document import jinja_environment, style_sheet
from ifkd.core.html.table import Table, markdown_cell

MARKS: dict[ChangeState, str] = {"same": "", "better": "↑", "regression": "✗", "not judged": "?"}
STATE_WORDS = {"same": "", "better": "better beyond noise"} | {key: key for key in ("regression", "not judged")}
CSS_CLASSES = {"same": "", "better": "passed", "regression": "failed", "not judged": "incomplete"}
PARITY = "Parity with the trained network"
GROUPS = {"accuracy": "Accuracy", "parity": PARITY, "latency": "Latency", "size": "Size", "scene": "Scenes"}


def comparison_page(comparison: Comparison) -> str:
    """Return the HTML page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    templates = jinja_environment("deploy.report", need="`ifkd report compare --out`")
    rows = {key: [row for row in comparison.rows if row.group == key] for key in GROUPS}
    groups = {key: {"title": title, "rows": rows[key]} for key, title in GROUPS.items() if rows[key]}
    states = {"marks": MARKS, "state_words": STATE_WORDS, "css_classes": CSS_CLASSES}
    template = templates.get_template("comparison.html.j2")
    page = template.render(
        comparison=comparison, groups=groups, style=style_sheet(), absent=ABSENT, words=_words, **states
    )
    return str(page)


def comparison_table(comparison: Comparison) -> Table:
    """Return all figures side by side."""
    letters = [report.letter for report in comparison.reports]
    headings, numeric = ("Figure", "Unit", *letters, "Notes"), (False, False, *[True] * len(letters), False)
    rows = []
    for row in comparison.rows:
        figures = (f"{_words(one)} {MARKS[one.state]}".strip() for one in row.values)
        rows.append((row.name, row.unit, *figures, row.notes or ABSENT))
    return Table("Figures side by side, A is the baseline", headings, numeric, tuple(rows))


def comparison_markdown(comparison: Comparison) -> str:
    """Return verdict, regressions, table and reports in GitHub Markdown."""
    count = len(comparison.regressions)
    head = "✅ **No regression.**" if comparison.passed else f"❌ **{count} regression{'s' if count > 1 else ''}.**"
    lines = ["### Detector reports compared", "", f"{head} Rule: {markdown_cell(comparison.rule)}.", ""]
    lines += [f"- {markdown_cell(words)}" for words in comparison.regressions]
    lines += [""] if comparison.regressions else []
    lines += [comparison_table(comparison).markdown(), ""]
    lines += ["✗ regression, ↑ better beyond noise, ? not judged, for the reason in the last column.", ""]
    lines += ["<details><summary>Reports</summary>", "", "| | Report | Created | Commit |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {one.letter} | {markdown_cell(one.title)} (`{one.path}`) | {one.created} | {one.commit or ABSENT} |"
        for one in comparison.reports
    ]
    return "\n".join([*lines, "", "</details>", ""])


def _words(figure: ComparedFigure) -> str:
    return f"{figure.text} ({figure.change})" if figure.change else figure.text
