"""The tables of a report as text cells, the same for the page, the Markdown and the terminal."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from deploy.accuracy.evaluation import Evaluation
from deploy.bench.bench import Bench, BenchCell
from deploy.parity.parity import Parity, ParityCell
from deploy.parity.tolerances import ToleranceCheck
from deploy.report.report import Report
from deploy.report.verdict import parts_of
from ifkd.core.html.table import Table

ABSENT = "–"
LONGEST_REASON = 60


def accuracy_table(report: Report) -> Table | None:
    """Return the detectors with their accuracy and size, or None without evaluations."""
    if not report.evaluations:
        return None
    teacher = parts_of(report.evaluations).get("teacher")
    whole = report.evaluations[teacher].subject.parameters if teacher else None
    rows = []
    for name, evaluation in report.evaluations.items():
        metrics, parameters = evaluation.metrics, evaluation.subject.parameters
        rows.append(
            (
                name,
                _detector(evaluation),
                ap(metrics.mean_ap),
                ap(metrics.ap50),
                ap(metrics.ap75),
                millions(parameters),
                ABSENT if evaluation.subject.gflops_per_tile is None else f"{evaluation.subject.gflops_per_tile:.2f}",
                f"{parameters / whole:.0%}" if parameters and whole else ABSENT,
                f"{evaluation.engine.backend} {evaluation.engine.precision}",
            )
        )
    return Table(
        caption="Detectors: accuracy and size",
        headings=(
            "Detector",
            "Network",
            "mAP",
            "AP50",
            "AP75",
            "Parameters",
            "GFLOPs/tile",
            "Of teacher",
            "Computed by",
        ),
        numeric=(False, False, True, True, True, True, True, True, False),
        rows=tuple(rows),
    )


def engine_table(report: Report) -> Table | None:
    """Return every engine with size, speed and parity, or None when nothing is known of engines."""
    several = len(report.benches) > 1
    rows = []
    for bench in report.benches:
        prefix = f"{bench.bundle.name}/" if several else ""
        rows += [_measured_row(cell, report.parities, prefix) for cell in bench.cells]
        rows += [
            (
                f"{prefix}{PurePosixPath(file.file).name}",
                f"{(file.builder or 'engine').split()[0]} {file.precision or ''}".strip(),
                ABSENT,
                size(file.file_mb),
                *(ABSENT,) * 5,
                file.reason,
            )
            for file in bench.not_measured
        ]
    if not report.benches:
        rows = [
            (
                cell.engine.file if cell.engine else ABSENT,
                f"{cell.backend} {cell.precision}",
                ABSENT if cell.engine is None else cell.engine.device,
                *(ABSENT,) * 5,
                parity_word(cell),
                "not measured",
            )
            for parity in report.parities
            for cell in parity.cells
        ]
    if not rows:
        return None
    return Table(
        caption="Engines: size, speed and parity",
        headings=(
            "File",
            "Runs in",
            "On",
            "MB",
            "Batch",
            "p50 ms",
            "p95 ms",
            "Tiles/s",
            "Parity",
            "Timing",
        ),
        numeric=(False, False, False, True, True, True, True, True, False, False),
        rows=tuple(rows),
    )


def gate_table(cells: Sequence[ParityCell]) -> Table | None:
    """Return the gates of engines side by side, or None when no engine gave figures."""
    judged = [cell for cell in cells if cell.gates]
    if not judged:
        return None
    names = list(dict.fromkeys(gate.name for cell in judged for gate in cell.gates))
    rows = []
    for name in names:
        found = [next((gate for gate in cell.gates if gate.name == name), None) for cell in judged]
        meaning = next(gate.meaning for gate in found if gate is not None)
        rows.append((meaning.rsplit(":", 1)[0], *(_gate_cell(gate) for gate in found)))
    return Table(
        caption="Gates: measured, and the worst that passes",
        headings=("ToleranceCheck", *(f"{cell.backend} {cell.precision}" for cell in judged)),
        numeric=(False, *(True for _ in judged)),
        rows=tuple(rows),
    )


def unmatched_table(cell: ParityCell, *, most: int = 10) -> Table | None:
    """Return the detections that one side lacks, highest scores first, or None when there are none."""
    if not cell.unmatched:
        return None
    return Table(
        caption=f"Detections of {cell.backend} {cell.precision} without a partner: "
        f"{cell.unmatched_count}, the first {min(most, len(cell.unmatched))} shown",
        headings=("Image", "Missing in", "Class", "Became", "Score", "Box px"),
        numeric=(False, False, False, False, True, False),
        rows=tuple(
            (
                one.image,
                one.missing_in,
                one.class_name,
                one.became or ABSENT,
                f"{one.score:.3f}",
                ", ".join(f"{value:.1f}" for value in one.box_px),
            )
            for one in cell.unmatched[:most]
        ),
    )


def parity_of(cell: BenchCell, parities: Sequence[Parity]) -> ParityCell | None:
    """Return the parity of the very file that was timed, in the same runtime, or None."""
    if cell.engine is None:
        return None
    for parity in parities:
        for other in parity.cells:
            if other.engine and (other.engine.sha256, other.backend, other.precision) == (
                cell.engine.sha256,
                cell.backend,
                cell.precision,
            ):
                return other
    return None


def is_reference(cell: BenchCell, parities: Sequence[Parity]) -> Parity | None:
    """Return the parity whose reference is the very engine that was timed, or None."""
    for parity in parities:
        if cell.engine and (parity.reference.sha256, parity.reference.backend, parity.reference.precision) == (
            cell.engine.sha256,
            cell.backend,
            cell.precision,
        ):
            return parity
    return None


def parity_word(cell: ParityCell) -> str:
    """Return the parity verdict as one word or two."""
    if cell.failure is not None:
        return "failed to run"
    return "passed" if cell.passed else "FAILED"


def ap(value: float | None) -> str:
    """Return an average precision with three decimals."""
    return ABSENT if value is None else f"{value:.3f}"


def millions(count: int | None) -> str:
    """Return a number of parameters in millions."""
    return ABSENT if count is None else f"{count / 1e6:.2f} M"


def size(megabytes: float | None) -> str:
    """Return a file size in megabytes."""
    return ABSENT if megabytes is None else f"{megabytes:.1f}" if megabytes >= 0.1 else f"{megabytes:.3f}"


def milliseconds(value: float) -> str:
    """Return a duration with about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(value: float) -> str:
    """Return a rate with about three digits."""
    return milliseconds(value)


def device_of(bench: Bench) -> str:
    """Return where a bench computed, in words."""
    return "; ".join(dict.fromkeys(cell.engine.device for cell in bench.cells if cell.engine)) or "no engine ran"


def _gate_cell(gate: ToleranceCheck | None) -> str:
    if gate is None:
        return ABSENT
    words = f"{gate.value:.3g} ({'≥' if gate.at_least else '≤'} {gate.limit:.3g})"
    return words if gate.passed else f"FAILED {words}"


def _measured_row(cell: BenchCell, parities: Sequence[Parity], prefix: str) -> tuple[str, ...]:
    prefix += "reference: " if cell.role == "reference" else ""
    name = f"{prefix}{cell.engine.file}" if cell.engine else f"{prefix}({cell.backend} {cell.precision})"
    parity = parity_of(cell, parities)
    word = parity_word(parity) if parity else "reference" if is_reference(cell, parities) else ABSENT
    figures: tuple[str, ...] = (ABSENT,) * 3
    timing = f"not measured: {_first_line(cell.failure)}" if cell.failure else "not measured"
    if cell.latency is not None:
        latency = cell.latency
        figures = (
            milliseconds(latency.per_batch.p50_ms),
            milliseconds(latency.per_batch.p95_ms),
            rate(latency.throughput.tiles_per_s),
        )
        timing = "stable" if latency.stability.stable else "UNSTABLE"
        timing = f"{'broken off' if cell.failure else timing}, n={latency.runs}"
    device = ABSENT if cell.engine is None else cell.engine.device
    engine = f"{cell.backend} {cell.precision}"
    return (name, engine, device, size(cell.file_mb), str(cell.batch), *figures, word, timing)


def _first_line(text: str) -> str:
    """Return the first line of a message, short enough for a cell; the verdict has the whole."""
    line = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


def _detector(evaluation: Evaluation) -> str:
    detector = evaluation.subject.detector
    parts = [str(detector[key]) for key in ("family", "backbone") if key in detector]
    if "channels" in detector:
        parts.append(f"{detector['channels']} channels")
    return " ".join(parts[:2]) + (f", {parts[2]}" if len(parts) > 2 else "") or ABSENT
