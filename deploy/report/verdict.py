"""The verdict of a report, and the reasons for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from deploy.accuracy.evaluation import Evaluation
from deploy.bench.bench_result import Bench
from deploy.parity.parity_result import Parity
from ifkd.core.config import Schema

Status = Literal["passed", "warning", "failed", "incomplete", "info"]
TrainedRole = Literal["teacher", "plain", "distilled"]

ROLES_BY_NAME: dict[str, TrainedRole] = {
    "teacher": "teacher",
    "plain": "plain",
    "plain student": "plain",
    "baseline": "plain",
    "student": "plain",
    "distilled": "distilled",
    "distilled student": "distilled",
}


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
    reasons = [*_parity(parities), *_accuracy(evaluations)]
    for bench in benches:
        reasons += _latency(bench)
    states = {reason.status for reason in reasons}
    status: Status = "passed"
    headline = "All engine files match the trained network."
    if "failed" in states:
        status, headline = "failed", "Not all engine files match the trained network."
    elif not parities:
        status, headline = "incomplete", "Parity was not measured, so there is no verdict on the engine files."
    elif any(parity.partial for parity in parities):
        status = "incomplete"
        headline = "Parity was interrupted, so there is no verdict on all engine files."
    elif "warning" in states:
        status = "warning"
        headline = "All engine files match the trained network; read the warnings before you quote the latencies."
    return Verdict(status=status, headline=headline, reasons=tuple(reasons))


def trained_roles(evaluations: Mapping[str, Evaluation]) -> dict[TrainedRole, str]:
    """Return the names of the evaluations of teacher, plain and distilled student, where they are known."""
    roles: dict[TrainedRole, str] = {}
    for name, evaluation in evaluations.items():
        role = _recorded_role(evaluation.model.provenance) or ROLES_BY_NAME.get(name.lower().replace("_", " "))
        if role is not None:
            roles.setdefault(role, name)
    return roles


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
            yield _reason(
                "passed" if cell.passed else "failed", f"{cell.name} against torch fp32: {cell.verdict}.", rule
            )
        for scene in parity.scenes:
            yield _reason(
                "passed" if scene.passed else "failed",
                f"{scene.name} on the scene {scene.scene}, tiled and merged: {scene.verdict}.",
                "the tolerances of detections, on the entire scene",
            )
        if parity.partial:
            yield _reason("incomplete", "The comparison with torch fp32 was interrupted.", "all engines compared")


def _accuracy(evaluations: Mapping[str, Evaluation]) -> Iterator[VerdictReason]:
    found = {role: evaluations[name] for role, name in trained_roles(evaluations).items()}
    distilled, plain, teacher = found.get("distilled"), found.get("plain"), found.get("teacher")
    if distilled is not None and plain is not None:
        before, after = plain.metrics.mean_ap, distilled.metrics.mean_ap
        yield _reason(
            "info",
            f"Distillation changes the mAP of the student by {after - before:+.3f}, from {before:.3f} to {after:.3f}.",
            f"one training run each; {distilled.metrics.images} images with {distilled.metrics.objects} objects",
        )
    if distilled is not None and teacher is not None and distilled.model.parameters and teacher.model.parameters:
        own, reference = distilled.metrics.mean_ap, teacher.metrics.mean_ap
        fraction = f"{own / reference:.0%}" if reference else "no comparable fraction"
        yield _reason(
            "info",
            f"The student has {distilled.model.parameters / teacher.model.parameters:.0%} of the teacher's parameters "
            f"and {fraction} of its mAP.",
            "trained parameters, without running statistics",
        )
    if len({evaluation.data.sha256 for evaluation in evaluations.values()}) > 1:
        yield _reason(
            "warning",
            "The evaluations used different annotation files, so their metrics cannot be compared.",
            "equal digests of the annotation files",
        )


def _latency(bench: Bench) -> Iterator[VerdictReason]:
    measured = [cell for cell in bench.cells if cell.latency is not None and cell.role == "bundle"]
    if measured:
        best = min(measured, key=lambda cell: cell.latency.per_tile.p50_ms if cell.latency else 0.0)
        assert best.latency is not None
        device = best.engine.device if best.engine else "an unknown device"
        yield _reason(
            "info",
            f"The fastest engine, {best.name} at batch {best.batch}, takes {best.latency.per_tile.p50_ms:.3g} ms per "
            f"tile (median) on {device}.",
            bench.scope,
        )
    yield from _speedup(bench)
    for warning in bench.machine_warnings():
        yield _reason("warning", f"During the measurement of latency, {warning}.", "an otherwise idle machine")
    for cell in bench.cells:
        name = f"{cell.name} at batch {cell.batch}"
        if cell.failure is not None:
            yield _reason("warning", f"{name}: {cell.failure}", "all engines measured")
        elif cell.latency is not None and not cell.latency.stability.stable:
            stability = cell.latency.stability
            yield _reason(
                "warning", f"{name}: timing was unstable on this machine: {stability.reason}.", stability.rule
            )
    if bench.partial:
        yield _reason("warning", "The measurement of latency was interrupted.", "all rounds measured")


def _speedup(bench: Bench) -> Iterator[VerdictReason]:
    """Yield the speedup of the bundle's torch network over the reference."""
    for one in bench.speedups:
        if not one.baseline.startswith("reference") or one.name != "torch fp32":
            continue
        assert bench.reference is not None
        text = (
            f"In the same runtime the student is {one.speedup:.2f} times as fast as {bench.reference.name} "
            f"({1 / one.latency_ratio_max:.2f} to {1 / one.latency_ratio_min:.2f} over {one.rounds} rounds)"
        )
        small = None if bench.model is None else bench.model.gflops_per_tile
        large = bench.reference.gflops_per_tile
        text += f" and needs {small / large:.0%} of its operations." if small and large else "."
        yield _reason("info", text, "torch fp32, measured in interleaved turns; median of the ratios of the rounds")
        return


def _reason(status: Status, text: str, rule: str) -> VerdictReason:
    return VerdictReason(status=status, text=text, rule=rule)
