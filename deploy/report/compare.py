"""Compare two or more reports, the first being the baseline, and find regressions.

Figures are judged only where both sides measured the same: the same data by its digest, the same device, runtime,
precision and batch. A latency is a regression when the fastest window of the new report is slower than the slowest
window of the baseline by more than the limit, so that noise is no regression. Unstable measurements are shown, but not
judged.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from string import ascii_uppercase
from typing import Literal, TypeVar

from pydantic import NonNegativeFloat, PositiveFloat

from deploy.accuracy.evaluation import Evaluation
from deploy.accuracy.provenance import now
from deploy.bench.bench_result import BenchCell
from deploy.bench.latency import Latency
from deploy.parity.tolerances import AP_LABELS
from deploy.report.report import Report
from deploy.scene.scene_score import SceneScore
from ifkd import __version__
from ifkd.core.config import Schema
from ifkd.core.errors import DataError

F = TypeVar("F")
ChangeState = Literal["same", "better", "regression", "not judged"]
FigureGroup = Literal["accuracy", "latency", "size", "parity", "scene"]
ABSENT = "–"
UNITS = {"latency": "ms/run", "size": "MB"}


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
    change: str = ""
    """Difference or ratio in words; empty for the baseline."""
    noise: str = ""
    """Range of the change that noise explains."""
    state: ChangeState = "same"
    reason: str = ""
    """Reason why it is a regression or was not judged."""


class ComparisonRow(Schema):
    """One figure in all reports."""

    group: FigureGroup
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
    """Compare reports, given by their path, with the first of them.

    Raises:
        DataError: No figure of a report can be compared with the baseline's.
    """
    limits = limits or RegressionLimits()
    contents = list(reports.values())
    accuracy, engines = _accuracy_rows(contents, limits), _engine_rows(contents, limits)
    rows = [*accuracy, *_parity_rows(contents), *engines, *_scene_rows(contents, limits)]
    rows = [row for row in rows if any(one.value is not None for one in row.values)]
    for index in range(1, len(contents)):
        figures = [row.values[index] for row in rows if row.values[0].value is not None]
        if all(one.state == "not judged" for one in figures):
            reasons = ", ".join(sorted({one.reason for one in figures})) or "they have no figure in common"
            raise DataError("The reports cannot be compared", got=f"{_letter(index)} and A: {reasons}")
    regressions = tuple(
        f"{_letter(index)}: {row.name} {one.change}, {one.reason}"
        for row in rows
        for index, one in enumerate(row.values)
        if one.state == "regression"
    )
    compared = tuple(
        ComparedReport(letter=_letter(index), title=one.title, path=path, created=one.created, commit=_commit(one))
        for index, (path, one) in enumerate(reports.items())
    )
    return Comparison(
        created=now(),
        producer=f"ifkd {__version__}",
        limits=limits,
        reports=compared,
        rows=tuple(rows),
        regressions=regressions,
        passed=not regressions,
        rule=f"compared with A: no AP lower by more than {limits.accuracy_drop:g}, no latency higher than x"
        f"{limits.latency_ratio:g} in addition to the spread of the windows, no file larger than x"
        f"{limits.size_ratio:g}, no parity lost, no figure missing",
    )


def _letter(index: int) -> str:
    """Return the letter of a report: A to Z, then A2 to Z2 and so on."""
    return ascii_uppercase[index % 26] + (str(index // 26 + 1) if index >= 26 else "")


def _accuracy_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    for name in dict.fromkeys(name for report in reports for name in report.evaluations):
        found = [report.evaluations.get(name) for report in reports]
        for key, label in AP_LABELS.items():
            yield _row("accuracy", f"{name} {label}", found, partial(_compare_evaluations, key=key, limits=limits))


def _scene_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    found = []
    for report in reports:
        seen: Counter[str] = Counter()
        scored = {}
        for scene in report.scenes:
            seen[scene.run.scene.name] += 1
            number = seen[scene.run.scene.name]
            scored[scene.run.scene.name + (f" ({number})" if number > 1 else "")] = scene.run.score
        found.append({name: one for name, one in scored.items() if one is not None and one.ap50 is not None})
    for name in dict.fromkeys(name for scores in found for name in scores):
        scores_of_name = [scores.get(name) for scores in found]
        yield _row("scene", f"{name} AP50", scores_of_name, partial(_compare_scenes, limits=limits))


def _parity_rows(reports: Sequence[Report]) -> Iterator[ComparisonRow]:
    found = [_parities(report) for report in reports]
    for name in dict.fromkeys(name for cells in found for name in cells):
        yield _row("parity", f"parity {name}", [cells.get(name) for cells in found], _compare_parity)


def _parities(report: Report) -> dict[str, bool]:
    """Return whether each engine passes on images, and on each scene, wherever it was compared."""
    passed: dict[str, bool] = {}
    for parity in report.parities:
        cells = [(cell.name, cell.passed) for cell in parity.cells]
        cells += [(f"{scene.name} on {scene.scene}", scene.passed) for scene in parity.scenes]
        for name, one in cells:
            passed[name] = passed.get(name, True) and one
    return passed


def _engine_rows(reports: Sequence[Report], limits: RegressionLimits) -> Iterator[ComparisonRow]:
    found = _bench_cells(reports)
    for name in dict.fromkeys(name for cells in found for name in cells):
        cells_of_name = [cells.get(name) for cells in found]
        timed = [None if cell is None or cell.latency is None else cell for cell in cells_of_name]
        yield _row("latency", f"{name} p50", timed, partial(_compare_latency, limits=limits))
        if name.endswith("batch 1"):
            file = f"{name.removesuffix(', batch 1')} file"
            sizes = [None if cell is None else cell.file_mb for cell in cells_of_name]
            yield _row("size", file, sizes, partial(_compare_size, limits=limits))


def _row(
    group: FigureGroup, name: str, found: Sequence[F | None], judge: Callable[[F, F | None], ComparedFigure]
) -> ComparisonRow:
    """Return a row; `judge` takes the figure of a report and, for all reports but the first, the baseline."""
    baseline, missing = found[0], ComparedFigure(value=None, text=ABSENT)
    if baseline is not None:
        lost = {"change": "missing", "state": "regression", "reason": "the baseline has it"}
        missing = missing.model_copy(update=lost)
    bases = (None, *[baseline] * (len(found) - 1))
    values = (missing if one is None else judge(one, base) for one, base in zip(found, bases, strict=True))
    return ComparisonRow(group=group, name=name, unit=UNITS.get(group, ""), values=tuple(values))


def _compare_evaluations(
    one: Evaluation, before: Evaluation | None, *, key: str, limits: RegressionLimits
) -> ComparedFigure:
    value: float | None = getattr(one.metrics, key)
    if before is None:
        return _compare_ap(value, None, limits=limits)
    obstacle = "the annotation files differ" if one.data.sha256 != before.data.sha256 else ""
    return _compare_ap(value, getattr(before.metrics, key), limits=limits, obstacle=obstacle)


def _compare_scenes(one: SceneScore, before: SceneScore | None, *, limits: RegressionLimits) -> ComparedFigure:
    if before is None:
        return _compare_ap(one.ap50, None, limits=limits)
    same = all(getattr(one, key) == getattr(before, key) for key in ("ground_truth", "objects", "boxes"))
    return _compare_ap(one.ap50, before.ap50, limits=limits, obstacle="" if same else "the labels differ")


def _compare_ap(
    value: float | None, before: float | None, *, limits: RegressionLimits, obstacle: str = ""
) -> ComparedFigure:
    if value is None:
        return ComparedFigure(value=None, text=ABSENT, state="not judged", reason="no labeled object")
    text, limit = f"{value:.3f}", limits.accuracy_drop
    if before is None:
        return ComparedFigure(value=value, text=text)
    change = value - before
    state, reason = _judge(change < -limit, change > limit, f"an AP may drop by {limit:g}", obstacle)
    return ComparedFigure(value=value, text=text, change=f"{change:+.3f}", state=state, reason=reason)


def _compare_parity(passed: bool, before: bool | None) -> ComparedFigure:  # noqa: FBT001 - private
    text = "passed" if passed else "failed"
    state, reason = _judge(before is True and not passed, before is False and passed, "parity must not be lost")
    change = "passed before" if state == "regression" else ""
    return ComparedFigure(value=float(passed), text=text, change=change, state=state, reason=reason)


def _compare_latency(cell: BenchCell, before: BenchCell | None, *, limits: RegressionLimits) -> ComparedFigure:
    value, limit = _latency(cell).per_batch.p50_ms, limits.latency_ratio
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    if before is None:
        return ComparedFigure(value=value, text=text)
    old, new = _window_medians(before), _window_medians(cell)
    low, high = min(new) / max(old), max(new) / min(old)
    rule = f"every window is slower than x{limit:g} of every window of A"
    state, reason = _judge(low > limit, high < 1 / limit, rule, _obstacle(cell, before))
    change, noise = f"x{value / _latency(before).per_batch.p50_ms:.2f}", f"windows x{low:.2f} to x{high:.2f}"
    return ComparedFigure(value=value, text=text, change=change, noise=noise, state=state, reason=reason)


def _compare_size(value: float, before: float | None, *, limits: RegressionLimits) -> ComparedFigure:
    text, limit = f"{value:.2f}", limits.size_ratio
    if before is None:
        return ComparedFigure(value=value, text=text)
    ratio = value / before
    state, reason = _judge(ratio > limit, ratio < 1 / limit, f"a file may grow to x{limit:g}")
    return ComparedFigure(value=value, text=text, change=f"x{ratio:.2f}", state=state, reason=reason)


def _judge(worse: bool, better: bool, rule: str, obstacle: str = "") -> tuple[ChangeState, str]:  # noqa: FBT001 - private
    """Return the state of a figure, and why it is a regression or was not judged."""
    if obstacle:
        return "not judged", obstacle
    if worse:
        return "regression", rule
    return "better" if better else "same", ""


def _obstacle(cell: BenchCell, before: BenchCell) -> str:
    """Return the reason why two latencies cannot be compared; empty when they can."""
    if cell.engine is None or before.engine is None or cell.engine.device != before.engine.device:
        return "the devices differ"
    if cell.engine.tile_px != before.engine.tile_px:
        return "the tile sizes differ"
    stable = _latency(cell).stability.stable and _latency(before).stability.stable
    return "" if stable else "a measurement was unstable"


def _bench_cells(reports: Sequence[Report]) -> list[dict[str, BenchCell]]:
    """Return the cells of each report by name, with bundle and device where a report has several of a name."""
    found = [
        [
            (f"{cell.name}, batch {cell.batch}", bench.bundle.name, cell)
            for bench in report.benches
            for cell in bench.cells
        ]
        for report in reports
    ]
    several = {name for cells in found for name, count in Counter(cell[0] for cell in cells).items() if count > 1}

    def full_name(name: str, bundle: str, cell: BenchCell) -> str:
        device = f" on {cell.engine.device}" if cell.engine is not None else ""
        return f"{bundle}{device}: {name}" if name in several else name

    return [{full_name(*one): one[2] for one in cells} for cells in found]


def _latency(cell: BenchCell) -> Latency:
    assert cell.latency is not None
    return cell.latency


def _window_medians(cell: BenchCell) -> list[float]:
    return [float(statistics.median(window)) for window in _latency(cell).windows_ns if window]


def _commit(report: Report) -> str | None:
    source = report.environment.get("source")
    if not isinstance(source, Mapping) or not source.get("commit"):
        return None
    return f"{str(source['commit'])[:10]}{' with changes' if source.get('changed_files') else ''}"
