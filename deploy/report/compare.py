"""Compare two or more reports, the first being the baseline, and find regressions.

Figures are judged only where both sides measured the same: the same data by its digest, the same device, runtime,
precision and batch. A latency is a regression when the fastest window of the new report is slower than the slowest
window of the baseline by more than the limit, so that noise is no regression. Unstable measurements are shown, but not
judged.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from deploy.accuracy.provenance import now
from deploy.bench.bench_result import BenchCell
from deploy.report.report import Report
from ifkd import __version__
from ifkd.core.config import Schema

ChangeState = Literal["same", "better", "regression", "not judged"]
ABSENT = "–"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class RegressionLimits(Schema):
    """Largest changes for the worse that are no regressions."""

    accuracy_drop: NonNegativeFloat = 0.005
    """Largest drop of an AP, absolute."""
    latency_ratio: PositiveFloat = 1.05
    """Largest ratio of median latencies, in addition to the spread of the windows."""
    size_ratio: PositiveFloat = 1.02
    """Largest ratio of file sizes."""


class ComparedFigure(Schema):
    """One figure of one report, compared with the baseline."""

    value: float | None
    """None when the report does not have it."""
    text: str
    change: str
    """Difference or ratio in words; empty for the baseline."""
    noise: str = ""
    """Range of the change that noise explains."""
    state: ChangeState
    reason: str = ""
    """Reason why it is a regression or was not judged."""


class ComparisonRow(Schema):
    """One figure in all reports."""

    group: Literal["accuracy", "latency", "size", "parity", "scene"]
    name: str
    unit: str
    values: tuple[ComparedFigure, ...]
    """By report, the baseline first."""

    @property
    def notes(self) -> str:
        """Noise and reasons of all values."""
        return "; ".join(dict.fromkeys(part for one in self.values for part in (one.noise, one.reason) if part))


class ComparedReport(Schema):
    """A report of the comparison."""

    letter: str
    title: str
    path: str
    created: str
    commit: str | None


class Comparison(Schema):
    """The result of `ifkd report compare`."""

    schema_version: Literal[2] = 2
    kind: Literal["comparison"] = "comparison"
    created: str
    """UTC, ISO 8601."""
    producer: str
    limits: RegressionLimits
    reports: tuple[ComparedReport, ...]
    rows: tuple[ComparisonRow, ...]
    regressions: tuple[str, ...]
    """Regressions in words."""
    passed: bool
    rule: str


def compare(reports: Mapping[str, Report], limits: RegressionLimits | None = None) -> Comparison:
    """Compare reports, given by their path, with the first of them."""
    limits = limits or RegressionLimits()
    contents = list(reports.values())
    rows = [
        *_accuracy_rows(contents, limits),
        *_parity_rows(contents),
        *_engine_rows(contents, limits),
        *_scene_rows(contents, limits),
    ]
    rows = [row for row in rows if any(one.value is not None for one in row.values)]
    regressions = tuple(
        f"{LETTERS[index]}: {row.name} {one.change}, {one.reason}"
        for row in rows
        for index, one in enumerate(row.values)
        if one.state == "regression"
    )
    return Comparison(
        created=now(),
        producer=f"ifkd {__version__}",
        limits=limits,
        reports=tuple(
            ComparedReport(
                letter=LETTERS[index], title=report.title, path=path, created=report.created, commit=_commit(report)
            )
            for index, (path, report) in enumerate(reports.items())
        ),
        rows=tuple(rows),
        regressions=regressions,
        passed=not regressions,
        rule=f"compared with A: no AP lower by more than {limits.accuracy_drop:g}, no latency higher than x"
        f"{limits.latency_ratio:g} in addition to the spread of the windows, no file larger than x"
        f"{limits.size_ratio:g}, no parity lost, no figure missing",
    )


def _accuracy_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    for name in dict.fromkeys(name for report in reports for name in report.evaluations):
        found = [report.evaluations.get(name) for report in reports]
        base = found[0]
        for key, label in (("mean_ap", "mAP"), ("ap50", "AP50"), ("ap75", "AP75")):
            values = []
            for index, one in enumerate(found):
                value = None if one is None else float(getattr(one.metrics, key))
                before = None if base is None else float(getattr(base.metrics, key))
                other_data = one is not None and base is not None and one.data.sha256 != base.data.sha256
                obstacle = "the annotation files differ" if other_data else ""
                values.append(_compare_ap(value, before, limits, is_baseline=index == 0, obstacle=obstacle))
            yield ComparisonRow(group="accuracy", name=f"{name} {label}", unit="", values=tuple(values))


def _scene_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    found = []
    for report in reports:
        scored = {scene.run.scene.name: scene.run.score for scene in report.scenes}
        found.append({name: one.ap50 for name, one in scored.items() if one is not None and one.ap50 is not None})
    for name in dict.fromkeys(name for scores in found for name in scores):
        compared = [
            _compare_ap(scores.get(name), found[0].get(name), limits, is_baseline=index == 0)
            for index, scores in enumerate(found)
        ]
        yield ComparisonRow(group="scene", name=f"{name} AP50", unit="", values=tuple(compared))


def _parity_rows(reports: Sequence[Report]) -> Iterator[ComparisonRow]:
    found = [{cell.name: cell.passed for one in report.parities for cell in one.cells} for report in reports]
    for name in dict.fromkeys(name for cells in found for name in cells):
        before = found[0].get(name)
        values = []
        for index, cells in enumerate(found):
            passed = cells.get(name)
            if passed is None:
                values.append(_missing(is_regression=before is not None and index > 0))
                continue
            lost = not passed and before is True
            values.append(
                ComparedFigure(
                    value=float(passed),
                    text="passed" if passed else "failed",
                    change="passed before" if lost else "",
                    state="regression" if lost else "better" if passed and before is False else "same",
                    reason="parity must not be lost" if lost else "",
                )
            )
        yield ComparisonRow(group="parity", name=f"parity {name}", unit="", values=tuple(values))


def _engine_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    found = [_bench_cells(report) for report in reports]
    for name in dict.fromkeys(name for cells in found for name in cells):
        before = found[0].get(name)
        latencies, sizes = [], []
        for index, cells in enumerate(found):
            latencies.append(_compare_latency(cells.get(name), before, limits, is_baseline=index == 0))
            sizes.append(_compare_size(cells.get(name), before, limits, is_baseline=index == 0))
        yield ComparisonRow(group="latency", name=f"{name} p50", unit="ms/run", values=tuple(latencies))
        if name.endswith("batch 1"):
            file = f"{name.removesuffix(', batch 1')} file"
            yield ComparisonRow(group="size", name=file, unit="MB", values=tuple(sizes))


def _compare_ap(
    value: float | None, before: float | None, limits: RegressionLimits, *, is_baseline: bool, obstacle: str = ""
) -> ComparedFigure:
    if value is None:
        return _missing(is_regression=before is not None and not is_baseline)
    text = f"{value:.3f}"
    if is_baseline or before is None:
        return ComparedFigure(value=value, text=text, change="", state="same")
    change = value - before
    state, reason = _state(change < -limits.accuracy_drop, change > limits.accuracy_drop), ""
    if obstacle:
        state, reason = "not judged", obstacle
    elif state == "regression":
        reason = f"an AP may drop by {limits.accuracy_drop:g}"
    return ComparedFigure(value=value, text=text, change=f"{change:+.3f}", state=state, reason=reason)


def _compare_latency(
    cell: BenchCell | None, before: BenchCell | None, limits: RegressionLimits, *, is_baseline: bool
) -> ComparedFigure:
    if cell is None or cell.latency is None:
        return _missing(is_regression=not is_baseline and before is not None and before.latency is not None)
    value = cell.latency.per_batch.p50_ms
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    if is_baseline or before is None or before.latency is None:
        return ComparedFigure(value=value, text=text, change="", state="same")
    ratio = value / before.latency.per_batch.p50_ms
    old, new = _window_medians(before), _window_medians(cell)
    low, high = min(new) / max(old), max(new) / min(old)
    state, reason = _state(low > limits.latency_ratio, high < 1 / limits.latency_ratio), ""
    if obstacle := _obstacle(cell, before):
        state, reason = "not judged", obstacle
    elif state == "regression":
        reason = f"every window is slower than x{limits.latency_ratio:g} of every window of A"
    noise = f"windows x{low:.2f} to x{high:.2f}"
    return ComparedFigure(value=value, text=text, change=f"x{ratio:.2f}", noise=noise, state=state, reason=reason)


def _compare_size(
    cell: BenchCell | None, before: BenchCell | None, limits: RegressionLimits, *, is_baseline: bool
) -> ComparedFigure:
    value = None if cell is None else cell.file_mb
    base = None if before is None else before.file_mb
    if value is None:
        return _missing(is_regression=not is_baseline and base is not None)
    if is_baseline or base is None:
        return ComparedFigure(value=value, text=f"{value:.2f}", change="", state="same")
    ratio = value / base
    state = _state(ratio > limits.size_ratio, ratio < 1 / limits.size_ratio)
    reason = f"a file may grow to x{limits.size_ratio:g}" if state == "regression" else ""
    return ComparedFigure(value=value, text=f"{value:.2f}", change=f"x{ratio:.2f}", state=state, reason=reason)


def _state(worse: bool, better: bool) -> ChangeState:  # noqa: FBT001 - private
    return "regression" if worse else "better" if better else "same"


def _missing(*, is_regression: bool) -> ComparedFigure:
    if not is_regression:
        return ComparedFigure(value=None, text=ABSENT, change="", state="same")
    return ComparedFigure(value=None, text=ABSENT, change="missing", state="regression", reason="the baseline has it")


def _obstacle(cell: BenchCell, before: BenchCell) -> str:
    """Return the reason why two latencies cannot be compared; empty when they can."""
    if cell.engine is None or before.engine is None or cell.engine.device != before.engine.device:
        return "the devices differ"
    if cell.engine.tile_px != before.engine.tile_px:
        return "the tile sizes differ"
    unstable = [one for one in (cell, before) if one.latency is not None and not one.latency.stability.stable]
    return "a measurement was unstable" if unstable else ""


def _bench_cells(report: Report) -> dict[str, BenchCell]:
    several = len(report.benches) > 1
    return {
        (f"{bench.bundle.name}: " if several else "") + f"{cell.name}, batch {cell.batch}": cell
        for bench in report.benches
        for cell in bench.cells
    }


def _window_medians(cell: BenchCell) -> list[float]:
    assert cell.latency is not None
    return [float(statistics.median(window)) for window in cell.latency.windows_ns if window]


def _commit(report: Report) -> str | None:
    source = report.environment.get("source")
    if not isinstance(source, Mapping) or not source.get("commit"):
        return None
    return f"{str(source['commit'])[:10]}{' with changes' if source.get('changed_files') else ''}"
