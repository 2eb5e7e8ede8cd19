"""A comparison of reports as a page: what got worse first, every figure side by side, and how they were made.

It is drawn from the comparison alone, needs no network, and equal input gives equal bytes.
"""

from typing import Any

from deploy.report.compare import ABSENT, MARKS, Change, Comparison, State, notes_of
from ifkd.core.html.document import jinja_environment, style_sheet

STATES: dict[State, str] = {
    "same": "",
    "better": "better beyond noise",
    "regression": "regression",
    "not judged": "not judged",
}
TONES: dict[State, str] = {"same": "", "better": "passed", "regression": "failed", "not judged": "open"}
"""Classes of the style sheet."""
GROUPS = {
    "accuracy": "Accuracy",
    "parity": "Parity with the trained network",
    "latency": "Latency",
    "size": "Size",
    "scene": "Scenes",
}


def comparison_page(comparison: Comparison) -> str:
    """Return the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    template = jinja_environment("deploy.report", need="`ifkd report compare --out`").get_template("comparison.html.j2")
    groups = []
    for key, title in GROUPS.items():
        rows = [
            {
                "name": row.name,
                "unit": row.unit,
                "cells": [_cell(change) for change in row.values],
                "notes": notes_of(row),
            }
            for row in comparison.rows
            if row.group == key
        ]
        if rows:
            groups.append({"key": key, "title": title, "rows": rows})
    view = {"comparison": comparison, "groups": groups, "style": style_sheet(), "absent": ABSENT}
    return str(template.render(view))


def _cell(change: Change) -> dict[str, Any]:
    words = f"{change.shown} ({change.change})" if change.change else change.shown
    return {
        "words": words,
        "mark": MARKS[change.state],
        "state": STATES[change.state],
        "tone": TONES[change.state],
    }
