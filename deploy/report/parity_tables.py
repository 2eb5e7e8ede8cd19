"""Tables of a parity: tolerances, drift, its source, unmatched detections."""

from collections.abc import Sequence

from deploy.parity.parity_result import ParityCell
from deploy.parity.tolerances import ToleranceCheck
from deploy.report.tables import ABSENT, make_table
from ifkd.core.html.table import Table

MAX_UNMATCHED = 10


def tolerance_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the tolerance checks of engines side by side, or None when all engines failed to run."""
    columns = {cell.name: {check.name: check for check in cell.tolerances} for cell in cells if cell.tolerances}
    if not columns:
        return None
    descriptions = {
        check.name: check.description.rsplit(":", 1)[0] for checks in columns.values() for check in checks.values()
    }
    return Table(
        caption="Tolerances: measured values, with the worst that passes",
        headings=("Value", *columns),
        numeric=(False, *(True for _ in columns)),
        rows=tuple(
            (description, *(_shown(checks.get(name)) for checks in columns.values()))
            for name, description in descriptions.items()
        ),
    )


def drift_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the distributions of the drift of engines, or None without pairs."""
    rows = []
    for cell in cells:
        if cell.drift is None:
            continue
        for words, one in (
            ("1 - IoU", cell.drift.iou),
            ("score", cell.drift.score),
            ("box edge, px", cell.drift.corner_px),
        ):
            rows.append((cell.name, words, *(f"{value:.3g}" for value in (one.mean, one.p50, one.p99, one.max))))
    return make_table(
        "Differences of matched detections",
        "Engine | Difference | Mean | p50 | p99 | Largest",
        rows,
        text=("Engine", "Difference"),
    )


def drift_source_table(cell: ParityCell) -> Table | None:
    """Return the steps of the pipeline compared, or None when the engine failed to run."""
    if cell.drift_source is None:
        return None
    return make_table(
        f"Steps of the pipeline: {cell.name} compared with the reference",
        "Step | Compared | Values | Largest | Mean | Cosine | Result",
        (
            (
                step.name,
                step.compares,
                f"{step.compared:,}",
                ABSENT if step.max is None else f"{step.max:.3g}",
                ABSENT if step.mean is None else f"{step.mean:.3g}",
                ABSENT if step.cosine is None else f"{step.cosine:.7f}",
                step.description if step.agrees else f"DIFFERS: {step.description}",
            )
            for step in cell.drift_source.steps
        ),
        text=("Step", "Compared", "Result"),
    )


def unmatched_table(cell: ParityCell) -> Table | None:
    """Return the unmatched detections, highest scores first, or None without any."""
    if not cell.unmatched:
        return None
    shown = cell.unmatched[:MAX_UNMATCHED]
    return make_table(
        f"Unmatched detections of {cell.name}: {cell.unmatched_count}, the first {len(shown)} shown",
        "Image | Missing in | Class | Changed to | Score | Box px",
        (
            (
                one.image,
                one.missing_in,
                one.class_name,
                one.changed_to or ABSENT,
                f"{one.score:.3f}",
                ", ".join(f"{value:.1f}" for value in one.box_px),
            )
            for one in shown
        ),
        text=("Image", "Missing in", "Class", "Changed to", "Box px"),
    )


def _shown(check: ToleranceCheck | None) -> str:
    if check is None:
        return ABSENT
    words = f"{check.value:.3g} ({'≥' if check.at_least else '≤'} {check.limit:.3g})"
    return words if check.passed else f"FAILED {words}"
