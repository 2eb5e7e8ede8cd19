"""The verdict of a report, and the reasons for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from deploy.accuracy.evaluation import Evaluation
from deploy.accuracy.provenance import EngineRecord
from deploy.bench.bench_result import Bench, BenchCell
from deploy.bench.latency import Latency
from deploy.parity.parity_result import Parity, ParityCell
from ifkd.core.config import Schema

Status = Literal["passed", "warning", "failed", "incomplete", "info"]
TrainedRole = Literal["teacher", "plain", "distilled"]

NAMES_BY_ROLE: dict[TrainedRole, tuple[str, ...]] = {
    "teacher": ("teacher",),
    "plain": ("plain", "plain student", "baseline", "student"),
    "distilled": ("distilled", "distilled student"),
}
ROLES_BY_NAME = {name: role for role, names in NAMES_BY_ROLE.items() for name in names}


class VerdictReason(Schema):
    """One statement of a verdict."""

    status: Status
    text: str
    rule: str
    """The rule that was applied, or the conditions of the figures."""


class Verdict(Schema):
    """The verdict of a report."""

    status: Status
    """`passed` and `failed` follow from parity; `warning`: passed, with warnings; `incomplete`: no parity, or parity
    interrupted."""
    headline: str
    reasons: tuple[VerdictReason, ...]


def reach_verdict(
    evaluations: Mapping[str, Evaluation], benches: Sequence[Bench], parities: Sequence[Parity]
) -> Verdict:
    """Return the verdict of all results."""
    latencies = (reason for bench in benches for reason in _latency(bench))
    not_compared = list(_not_compared(benches, parities))
    reasons = [*_parity(parities), *not_compared, *_accuracy(evaluations), *latencies]
    states = {reason.status for reason in reasons}
    status: Status = "passed"
    compared = " that were compared" if not_compared else ""
    headline = f"All engine files{compared} match the trained network."
    if "failed" in states:
        status, headline = "failed", "Not all engine files match the trained network."
    elif not any(parity.cells for parity in parities):
        status, headline = "incomplete", "Parity was not measured, so there is no verdict on the engine files."
    elif any(parity.partial for parity in parities):
        status, headline = "incomplete", "Parity was interrupted, so there is no verdict on all engine files."
    elif "warning" in states:
        status = "warning"
        headline = f"{headline.removesuffix('.')}; read the warnings before you quote the latencies."
    return Verdict(status=status, headline=headline, reasons=tuple(reasons))


def trained_roles(evaluations: Mapping[str, Evaluation]) -> dict[TrainedRole, str]:
    """Return the names of the evaluations of teacher, plain and distilled student, where they are known."""
    roles: dict[TrainedRole, str] = {}
    for name, evaluation in evaluations.items():
        role = _recorded_role(evaluation.model.provenance) or ROLES_BY_NAME.get(name.lower().replace("_", " "))
        if role is not None:
            roles.setdefault(role, name)
    return roles


def fastest_cell(benches: Sequence[Bench]) -> tuple[BenchCell, Latency] | None:
    """Return the engine of a bundle with the least median latency per tile, and this latency; None without any."""
    cells = (cell for bench in benches for cell in bench.cells if cell.role == "bundle")
    timed = [(cell, cell.latency) for cell in cells if cell.latency is not None]
    return min(timed, key=lambda one: one[1].per_tile.p50_ms, default=None)


def parity_of(cell: BenchCell, parities: Sequence[Parity]) -> ParityCell | None:
    """Return the parity of the file that was timed, in the same runtime, one that failed before others; or None."""
    cells = (other for parity in parities for other in parity.cells)
    same = (other for other in cells if same_engine(cell.engine, other.engine))
    return min(same, key=lambda one: one.passed, default=None)


def same_engine(one: EngineRecord | None, other: EngineRecord | None) -> bool:
    """Return whether two records are of one file in one runtime."""
    if one is None or other is None:
        return False
    return (one.sha256, one.backend, one.precision) == (other.sha256, other.backend, other.precision)


def _recorded_role(provenance: Mapping[str, Any]) -> TrainedRole | None:
    role, method = provenance.get("role"), provenance.get("method")
    if isinstance(method, Mapping):
        method = method.get("name")
    if role == "teacher":
        return "teacher"
    if role == "student" and method is not None:
        return "plain" if method == "none" else "distilled"
    return None


def _parity(parities: Sequence[Parity]) -> Iterator[VerdictReason]:
    for parity in parities:
        rule = f"{parity.rule}; {parity.data.images} images with {parity.data.objects} objects"
        for cell in parity.cells:
            text = f"{cell.name} against torch fp32: {cell.verdict}."
            yield _reason("passed" if cell.passed else "failed", text, rule)
        for scene in parity.scenes:
            text = f"{scene.name} on the scene {scene.scene}, tiled and merged: {scene.verdict}."
            rule = "the tolerances of detections, on the entire scene"
            yield _reason("passed" if scene.passed else "failed", text, rule)
        if parity.partial:
            yield _reason("incomplete", "The comparison with torch fp32 was interrupted.", "all engines compared")


def _not_compared(benches: Sequence[Bench], parities: Sequence[Parity]) -> Iterator[VerdictReason]:
    """Yield the files of bundles that were timed and not compared; none where nothing was compared."""
    if not any(parity.cells for parity in parities):
        return
    for name in dict.fromkeys(
        cell.name
        for bench in benches
        for cell in bench.cells
        if cell.role == "bundle"
        and cell.latency is not None
        and parity_of(cell, parities) is None
        and not any(same_engine(cell.engine, parity.reference) for parity in parities)
    ):
        yield _reason("warning", f"{name} was timed, but not compared with the trained network.", "all files compared")


def _accuracy(evaluations: Mapping[str, Evaluation]) -> Iterator[VerdictReason]:
    found = {role: evaluations[name] for role, name in trained_roles(evaluations).items()}
    distilled, plain, teacher = found.get("distilled"), found.get("plain"), found.get("teacher")
    if distilled is not None and plain is not None:
        before, after = plain.metrics.mean_ap, distilled.metrics.mean_ap
        rule = f"one training run each; {distilled.metrics.images} images with {distilled.metrics.objects} objects"
        if before is not None and after is not None:
            change = f"by {after - before:+.3f}, from {before:.3f} to {after:.3f}"
            yield _reason("info", f"Distillation changes the mAP of the student {change}.", rule)
    if distilled is not None and teacher is not None and distilled.model.parameters and teacher.model.parameters:
        own, reference = distilled.metrics.mean_ap, teacher.metrics.mean_ap
        fraction = f"{own / reference:.0%}" if own is not None and reference else "no comparable fraction"
        size = f"{distilled.model.parameters / teacher.model.parameters:.0%} of the teacher's parameters"
        text = f"The student has {size} and {fraction} of its mAP."
        yield _reason("info", text, "trained parameters, without running statistics")
    if empty := [name for name, evaluation in evaluations.items() if not evaluation.metrics.objects]:
        text = f"No object is labeled in the data of {', '.join(empty)}, so there is no accuracy."
        yield _reason("warning", text, "labeled objects")
    if len({evaluation.data.sha256 for evaluation in evaluations.values()}) > 1:
        text = "The evaluations used different annotation files, so their metrics cannot be compared."
        yield _reason("warning", text, "equal digests of the annotation files")


def _latency(bench: Bench) -> Iterator[VerdictReason]:
    if (fastest := fastest_cell([bench])) is not None:
        cell, latency = fastest
        device = cell.engine.device if cell.engine else "an unknown device"
        took = f"{latency.per_tile.p50_ms:.3g} ms per tile (median) on {device}"
        yield _reason("info", f"The fastest engine, {cell.name} at batch {cell.batch}, takes {took}.", bench.scope)
    yield from _speedup(bench)
    for warning in bench.machine_warnings():
        yield _reason("warning", f"During the measurement of latency, {warning}.", "an otherwise idle machine")
    for cell in bench.cells:
        name = f"{cell.name} at batch {cell.batch}"
        if cell.failure is not None:
            yield _reason("warning", f"{name}: {cell.failure}", "all engines measured")
        elif cell.latency is not None and not cell.latency.stability.stable:
            stability = cell.latency.stability
            text = f"{name}: timing was unstable on this machine: {stability.reason}."
            yield _reason("warning", text, stability.rule)
    if bench.partial:
        yield _reason("warning", "The measurement of latency was interrupted.", "all rounds measured")


def _speedup(bench: Bench) -> Iterator[VerdictReason]:
    """Yield the speedup of the bundle's torch network over the reference."""
    same_runtime = [one for one in bench.speedups if one.name == "torch fp32" and one.baseline.startswith("reference")]
    for one in same_runtime[:1]:
        assert bench.reference is not None
        text = (
            f"In the same runtime the student is {one.speedup:.2f} times as fast as {bench.reference.name} "
            f"({1 / one.latency_ratio_max:.2f} to {1 / one.latency_ratio_min:.2f} over {one.rounds} rounds)"
        )
        small = None if bench.model is None else bench.model.gflops_per_tile
        large = bench.reference.gflops_per_tile
        text += f" and needs {small / large:.0%} of its operations." if small and large else "."
        yield _reason("info", text, "torch fp32, measured in interleaved turns; median of the ratios of the rounds")


def _reason(status: Status, text: str, rule: str) -> VerdictReason:
    return VerdictReason(status=status, text=text, rule=rule)
