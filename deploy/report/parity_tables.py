"""Tables of a parity: tolerances, drift, its source, unmatched detections."""

from collections.abc import Sequence

from deploy.parity.parity_result import ParityCell
from deploy.parity.tolerances import ToleranceCheck
from deploy.report.tables import ABSENT, make_table, shown
from ifkd.core.html.table import Table

MAX_UNMATCHED = 10


def tolerance_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the tolerance checks of engines side by side, or None when all engines failed to run."""
    columns = {cell.name: {check.name: check for check in cell.tolerances} for cell in cells if cell.tolerances}
    named = {name: check.description.rsplit(":", 1)[0] for one in columns.values() for name, check in one.items()}
    rows = ((words, *(_checked(checks.get(name)) for checks in columns.values())) for name, words in named.items())
    headings = " | ".join([":Value", *columns])
    return make_table("Tolerances: measured values, with the worst that passes", headings, rows)


def drift_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the distributions of the drift of engines, or None without pairs."""
    rows = []
    for name, drift in ((cell.name, cell.drift) for cell in cells if cell.drift is not None):
        moved = "box edge, px" if drift.angle_deg is None else "corner, px"
        differences = [("1 - IoU", drift.iou), ("score", drift.score), (moved, drift.corner_px)]
        if drift.angle_deg is not None:
            differences.append(("direction, degrees", drift.angle_deg))
        for words, one in differences:
            rows.append((name, words, *(f"{value:.3g}" for value in (one.mean, one.p50, one.p99, one.max))))
    columns = ":Engine | :Difference | Mean | p50 | p99 | Largest"
    return make_table("Differences of matched detections", columns, rows)


def drift_source_table(cell: ParityCell) -> Table | None:
    """Return the steps of the pipeline compared, or None when the engine failed to run."""
    rows = []
    for step in cell.drift_source.steps if cell.drift_source is not None else ():
        figures = (shown(step.max, ".3g"), shown(step.mean, ".3g"), shown(step.cosine, ".7f"))
        words = step.description if step.agrees else f"DIFFERS: {step.description}"
        rows.append((step.name, step.compares, f"{step.compared:,}", *figures, words))
    caption = f"Steps of the pipeline: {cell.name} compared with the reference"
    return make_table(caption, ":Step | :Compared | Values | Largest | Mean | Cosine | :Result", rows)


def unmatched_table(cell: ParityCell) -> Table | None:
    """Return the unmatched detections, highest scores first, or None without any."""
    rows = []
    for one in cell.unmatched[:MAX_UNMATCHED]:
        box = ", ".join(f"{value:.1f}" for value in one.box_px)
        rows.append((one.image, one.missing_in, one.class_name, one.changed_to or ABSENT, f"{one.score:.3f}", box))
    caption = f"Unmatched detections of {cell.name}: {cell.unmatched_count}, the first {len(rows)} shown"
    return make_table(caption, ":Image | :Missing in | :Class | :Changed to | Score | :Box px", rows)


def _checked(check: ToleranceCheck | None) -> str:
    if check is None:
        return ABSENT
    words = f"{check.value:.3g} ({'≥' if check.at_least else '≤'} {check.limit:.3g})"
    return words if check.passed else f"FAILED {words}"
