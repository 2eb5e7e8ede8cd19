"""Two or more reports side by side: what changed, by how much, and whether that is more than noise.

The first report is the baseline. A figure is judged only where both sides measured the same thing: the same data by
its digest, the same device, the same runtime, precision and batch. Latency is worse when even the fastest window of the
newer report is slower than the slowest window of the baseline by more than the limit, so that a machine's jitter is no
regression; a measurement that was not stable is shown and not judged.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from deploy.accuracy.provenance import now
from deploy.bench.bench import BenchCell, name_of
from deploy.report.report import Report
from ifkd import __version__
from ifkd.core.config import Schema
from ifkd.core.html.table import Table

State = Literal["same", "better", "regression", "not judged"]
ABSENT = "–"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARKS: dict[State, str] = {"same": "", "better": "↑", "regression": "✗", "not judged": "?"}


class Limits(Schema):
    """How much worse a figure may become; each is the worst that passes."""

    accuracy_drop: NonNegativeFloat = 0.005
    """Largest drop of an AP, absolute."""
    latency_ratio: PositiveFloat = 1.05
    """Largest ratio of the median latencies, beyond the spread of the windows."""
    size_ratio: PositiveFloat = 1.02
    """Largest ratio of file sizes."""


class Change(Schema):
    """One figure of one report against the baseline's."""

    value: float | None
    """None when this report does not have it."""
    shown: str
    change: str
    """Difference or ratio, in words; empty for the baseline."""
    noise: str = ""
    """What the change must be seen against."""
    state: State
    why: str = ""
    """The rule, where it is a regression or was not judged."""


class Row(Schema):
    """One figure in all reports."""

    group: Literal["accuracy", "latency", "size", "parity", "scene"]
    name: str
    unit: str
    values: tuple[Change, ...]
    """One for each report, the baseline first."""


class Compared(Schema):
    """A report that took part."""

    letter: str
    title: str
    path: str
    created: str
    commit: str | None


class Comparison(Schema):
    """The result of `ifkd report compare`."""

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    created: str
    """UTC, ISO 8601."""
    producer: str
    limits: Limits
    reports: tuple[Compared, ...]
    rows: tuple[Row, ...]
    regressions: tuple[str, ...]
    """Each regression in words."""
    passed: bool
    rule: str


def compare(reports: Mapping[str, Report], limits: Limits | None = None) -> Comparison:
    """Compare reports by their path, the first being the baseline."""
    limits = limits or Limits()
    everything = list(reports.values())
    rows = [*_accuracy(everything, limits), *_parity(everything), *_cells(everything, limits)]
    rows += _scenes(everything, limits)
    rows = [row for row in rows if any(change.value is not None for change in row.values)]
    regressions = tuple(
        f"{LETTERS[index]}: {row.name} {change.change}, {change.why}"
        for row in rows
        for index, change in enumerate(row.values)
        if change.state == "regression"
    )
    return Comparison(
        created=now(),
        producer=f"ifkd {__version__}",
        limits=limits,
        reports=tuple(
            Compared(
                letter=LETTERS[index],
                title=report.title,
                path=path,
                created=report.created,
                commit=_commit(report),
            )
            for index, (path, report) in enumerate(reports.items())
        ),
        rows=tuple(rows),
        regressions=regressions,
        passed=not regressions,
        rule=f"against A: no AP lower by more than {limits.accuracy_drop:g}, no latency higher than x"
        f"{limits.latency_ratio:g} beyond the windows' spread, no file larger than x{limits.size_ratio:g}, no parity "
        "lost, nothing that A has missing",
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return all figures side by side."""
    rows = []
    for row in comparison.rows:
        cells = []
        for change in row.values:
            mark = MARKS[change.state]
            words = f"{change.shown} ({change.change})" if change.change else change.shown
            cells.append(f"{words} {mark}".strip())
        rows.append((row.name, row.unit, *cells, notes_of(row) or ABSENT))
    headings = ("Figure", "Unit", *(report.letter for report in comparison.reports), "Read with")
    return Table(
        caption="Figures side by side, A the baseline",
        headings=headings,
        numeric=(False, False, *(True for _ in comparison.reports), False),
        rows=tuple(rows),
    )


def notes_of(row: Row) -> str:
    """Return what a row's changes must be read with, each thing once."""
    return "; ".join(dict.fromkeys(part for change in row.values for part in (change.noise, change.why) if part))


def comparison_markdown(comparison: Comparison) -> str:
    """Return the summary in GitHub's Markdown: verdict, regressions, table, conditions."""
    count = len(comparison.regressions)
    head = "✅ **No regression.**" if comparison.passed else f"❌ **{count} regression{'s' if count > 1 else ''}.**"
    lines = ["### Detector reports compared", "", f"{head} Rule: {_text(comparison.rule)}.", ""]
    lines += [f"- {_text(words)}" for words in comparison.regressions]
    lines += [""] if comparison.regressions else []
    lines += [comparison_table(comparison).markdown(), ""]
    lines += ["✗ regression, ↑ better beyond noise, ? not judged, for the reason in the last column.", ""]
    lines += ["<details><summary>Reports</summary>", "", "| | Report | Made | Commit |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {one.letter} | {_text(one.title)} (`{one.path}`) | {one.created} | {one.commit or ABSENT} |"
        for one in comparison.reports
    ]
    return "\n".join([*lines, "", "</details>", ""])


def _accuracy(reports: Sequence[Report], limits: Limits) -> Iterator[Row]:
    for name in _names(reports, lambda report: list(report.evaluations)):
        for key, words in (("mean_ap", "mAP"), ("ap50", "AP50"), ("ap75", "AP75")):
            values = []
            base = reports[0].evaluations.get(name)
            for report in reports:
                one = report.evaluations.get(name)
                value = None if one is None else float(getattr(one.metrics, key))
                before = None if base is None else float(getattr(base.metrics, key))
                other = (
                    "the annotation files differ"
                    if one is not None and base is not None and one.data.sha256 != base.data.sha256
                    else ""
                )
                values.append(_drop(value, before, limits, first=report is reports[0], obstacle=other))
            yield Row(group="accuracy", name=f"{name} {words}", unit="", values=tuple(values))


def _drop(value: float | None, before: float | None, limits: Limits, *, first: bool, obstacle: str = "") -> Change:
    """Return an AP against the baseline's."""
    if value is None:
        return _gone(before is not None and not first)
    shown = f"{value:.3f}"
    if first or before is None:
        return Change(value=value, shown=shown, change="", state="same")
    change = value - before
    if obstacle:
        return Change(value=value, shown=shown, change=f"{change:+.3f}", state="not judged", why=obstacle)
    worse = -change > limits.accuracy_drop
    state: State = "regression" if worse else "better" if change > limits.accuracy_drop else "same"
    why = f"an AP may drop by {limits.accuracy_drop:g}" if worse else ""
    return Change(value=value, shown=shown, change=f"{change:+.3f}", state=state, why=why)


def _gone(regression: bool) -> Change:  # noqa: FBT001 - private, and read at a glance
    why = "the baseline has it" if regression else ""
    return Change(
        value=None, shown=ABSENT, change="missing" if regression else "", state="regression" if regression else "same",
        why=why,
    )  # fmt: skip


def _parity(reports: Sequence[Report]) -> Iterator[Row]:
    def cells(report: Report) -> dict[str, bool]:
        return {f"{cell.backend} {cell.precision}": cell.passed for one in report.parities for cell in one.cells}

    before = cells(reports[0])
    for name in _names(reports, lambda report: list(cells(report))):
        values = []
        for report in reports:
            passed = cells(report).get(name)
            if passed is None:
                values.append(_gone(name in before and report is not reports[0]))
                continue
            worse = not passed and before.get(name) is True
            values.append(
                Change(
                    value=float(passed),
                    shown="passed" if passed else "failed",
                    change="passed before" if worse else "",
                    state="regression" if worse else "better" if passed and before.get(name) is False else "same",
                    why="parity may not be lost" if worse else "",
                )
            )
        yield Row(group="parity", name=f"parity {name}", unit="", values=tuple(values))


def _cells(reports: Sequence[Report], limits: Limits) -> Iterator[Row]:
    found = [_bench_cells(report) for report in reports]
    for name in _names(reports, lambda report: list(_bench_cells(report))):
        before = found[0].get(name)
        latencies, sizes = [], []
        for index, cells in enumerate(found):
            latencies.append(_latency(cells.get(name), before, limits, first=index == 0))
            sizes.append(_size(cells.get(name), before, limits, first=index == 0))
        yield Row(group="latency", name=f"{name} p50", unit="ms/run", values=tuple(latencies))
        if name.endswith("batch 1"):
            yield Row(group="size", name=f"{name.removesuffix(', batch 1')} file", unit="MB", values=tuple(sizes))


def _latency(cell: BenchCell | None, before: BenchCell | None, limits: Limits, *, first: bool) -> Change:
    if cell is None or cell.latency is None:
        return _gone(not first and before is not None and before.latency is not None)
    value = cell.latency.per_batch.p50_ms
    shown = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    if first or before is None or before.latency is None:
        return Change(value=value, shown=shown, change="", state="same")
    ratio = value / before.latency.per_batch.p50_ms
    ours, theirs = _window_medians(before), _window_medians(cell)
    low, high = min(theirs) / max(ours), max(theirs) / min(ours)
    noise = f"windows x{low:.2f} to x{high:.2f}"
    obstacle = _obstacle(cell, before)
    state: State = "same"
    why = obstacle
    if obstacle:
        state = "not judged"
    elif low > limits.latency_ratio:
        state, why = "regression", f"every window is slower than x{limits.latency_ratio:g} of every window of A"
    elif high < 1 / limits.latency_ratio:
        state = "better"
    return Change(value=value, shown=shown, change=f"x{ratio:.2f}", noise=noise, state=state, why=why)


def _obstacle(cell: BenchCell, before: BenchCell) -> str:
    """Return why two latencies cannot be judged against each other; empty when they can."""
    if cell.engine is None or before.engine is None or cell.engine.device != before.engine.device:
        return "the devices differ"
    if cell.engine.tile_px != before.engine.tile_px:
        return "the tiles differ in size"
    unstable = [one for one in (cell, before) if one.latency is not None and not one.latency.stability.stable]
    return "a measurement was not stable" if unstable else ""


def _size(cell: BenchCell | None, before: BenchCell | None, limits: Limits, *, first: bool) -> Change:
    value = None if cell is None else cell.file_mb
    base = None if before is None else before.file_mb
    if value is None:
        return _gone(not first and base is not None)
    if first or base is None:
        return Change(value=value, shown=f"{value:.2f}", change="", state="same")
    ratio = value / base
    worse = ratio > limits.size_ratio
    state: State = "regression" if worse else "better" if ratio < 1 / limits.size_ratio else "same"
    why = f"a file may grow to x{limits.size_ratio:g}" if worse else ""
    return Change(value=value, shown=f"{value:.2f}", change=f"x{ratio:.2f}", state=state, why=why)


def _scenes(reports: Sequence[Report], limits: Limits) -> Iterator[Row]:
    def scores(report: Report) -> dict[str, float]:
        found = {}
        for scene in report.scenes:
            score = scene.run.get("score")
            if isinstance(score, dict) and isinstance(score.get("ap50"), int | float):
                found[scene.name] = float(score["ap50"])
        return found

    before = scores(reports[0])
    for name in _names(reports, lambda report: list(scores(report))):
        values = [
            _drop(scores(report).get(name), before.get(name), limits, first=report is reports[0]) for report in reports
        ]
        yield Row(group="scene", name=f"{name} AP50", unit="", values=tuple(values))


def _bench_cells(report: Report) -> dict[str, BenchCell]:
    several = len(report.benches) > 1
    return {
        (f"{bench.bundle.name}: " if several else "") + f"{name_of(cell)}, batch {cell.batch}": cell
        for bench in report.benches
        for cell in bench.cells
    }


def _window_medians(cell: BenchCell) -> list[float]:
    assert cell.latency is not None
    return [float(statistics.median(window)) for window in cell.latency.windows_ns if window]


def _names(reports: Sequence[Report], of: Callable[[Report], list[str]]) -> list[str]:
    return list(dict.fromkeys(name for report in reports for name in of(report)))


def _commit(report: Report) -> str | None:
    source = report.environment.get("source")
    if not isinstance(source, Mapping) or not source.get("commit"):
        return None
    return f"{str(source['commit'])[:10]}{' with changes' if source.get('changed_files') else ''}"


def _text(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
