"""What the figures of a report come to, each statement with the rule behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deploy.accuracy.evaluation import Evaluation
from deploy.bench.bench import Bench, reservations
from deploy.parity.parity import Parity
from ifkd.core.config import Schema

Status = Literal["passed", "reserved", "failed", "open", "info"]
Part = Literal["teacher", "plain", "distilled"]

PARTS_BY_NAME: dict[str, Part] = {
    "teacher": "teacher",
    "plain": "plain",
    "plain student": "plain",
    "baseline": "plain",
    "student": "plain",
    "distilled": "distilled",
    "distilled student": "distilled",
}


class VerdictReason(Schema):
    """One statement."""

    status: Status
    text: str
    rule: str
    """The rule or the conditions behind it."""


class Verdict(Schema):
    """What it comes to."""

    status: Status
    """`passed` and `failed` are those of parity; `reserved` passed, with something to know; `open` has no gate."""
    headline: str
    findings: tuple[VerdictReason, ...]


def reach_verdict(
    evaluations: Mapping[str, Evaluation], benches: Sequence[Bench], parities: Sequence[Parity]
) -> Verdict:
    """Return the verdict over everything that was measured."""
    findings = [*_parity(parities), *_accuracy(evaluations), *_latency(benches)]
    states = {finding.status for finding in findings}
    if "failed" in states:
        status: Status = "failed"
        headline = "The engine files do not all match the trained network."
    elif not parities:
        status, headline = "open", "No parity was measured, so there is no verdict on the engine files."
    elif any(parity.partial for parity in parities):
        status, headline = "open", "The comparison was interrupted, so there is no verdict on all engine files."
    elif "reserved" in states:
        status = "reserved"
        headline = "The engine files match the trained network; read the reservations before quoting speeds."
    else:
        status, headline = "passed", "The engine files match the trained network."
    return Verdict(status=status, headline=headline, findings=tuple(findings))


def parts_of(evaluations: Mapping[str, Evaluation]) -> dict[Part, str]:
    """Return which evaluation is the teacher's, the plain and the distilled student's, as far as they tell."""
    parts: dict[Part, str] = {}
    for name, evaluation in evaluations.items():
        part = _part(evaluation.subject.provenance) or PARTS_BY_NAME.get(name.lower().replace("_", " "))
        if part is not None:
            parts.setdefault(part, name)
    return parts


def _part(provenance: Mapping[str, Any]) -> Part | None:
    role, method = provenance.get("role"), provenance.get("method")
    if isinstance(method, Mapping):
        method = method.get("name")
    if role == "teacher":
        return "teacher"
    if role == "student" and method is not None:
        return "plain" if method == "none" else "distilled"
    return None


def _parity(parities: Sequence[Parity]) -> list[VerdictReason]:
    findings = []
    for parity in parities:
        about = f"{parity.rule}; {parity.data.images} images with {parity.data.objects} objects"
        for cell in parity.cells:
            status: Status = "passed" if cell.passed else "failed"
            text = f"{cell.backend} {cell.precision} against torch fp32: {cell.verdict}."
            findings.append(VerdictReason(status=status, text=text, rule=about))
        for one in parity.scenes:
            status = "passed" if one.passed else "failed"
            text = f"{one.backend} {one.precision} on the scene {one.scene}, tiled and merged: {one.verdict}."
            findings.append(
                VerdictReason(status=status, text=text, rule="the gates of the detections, on the whole scene")
            )
        if parity.partial:
            text = "The comparison with torch fp32 was interrupted; what it came to until then is here."
            findings.append(VerdictReason(status="open", text=text, rule="every engine compared"))
    return findings


def _accuracy(evaluations: Mapping[str, Evaluation]) -> list[VerdictReason]:
    parts = parts_of(evaluations)
    findings = []
    if "distilled" in parts and "plain" in parts:
        distilled, plain = evaluations[parts["distilled"]], evaluations[parts["plain"]]
        gain = distilled.metrics.mean_ap - plain.metrics.mean_ap
        findings.append(
            VerdictReason(
                status="info",
                text=f"Distillation changes the student's mAP by {gain:+.3f}, from {plain.metrics.mean_ap:.3f} "
                f"to {distilled.metrics.mean_ap:.3f}.",
                rule=f"one training run each; {distilled.metrics.images} images with "
                f"{distilled.metrics.objects} objects",
            )
        )
    if "distilled" in parts and "teacher" in parts:
        distilled, teacher = evaluations[parts["distilled"]], evaluations[parts["teacher"]]
        small, large = distilled.subject.parameters, teacher.subject.parameters
        if small and large:
            findings.append(
                VerdictReason(
                    status="info",
                    text=f"The student has {small / large:.0%} of the teacher's parameters "
                    f"and {_share(distilled.metrics.mean_ap, teacher.metrics.mean_ap)} of its mAP.",
                    rule="learned numbers, running statistics left out",
                )
            )
    if len({evaluation.data.sha256 for evaluation in evaluations.values()}) > 1:
        findings.append(
            VerdictReason(
                status="reserved",
                text="The evaluations used different annotation files, so their figures do not compare.",
                rule="equal digests of the annotation files",
            )
        )
    return findings


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "no comparable share"


def _beside(bench: Bench) -> list[VerdictReason]:
    """Return what the bench says against its reference, and what the machine did meanwhile."""
    findings = []
    ours = [one for one in bench.ratios if one.against.startswith("reference") and one.name == "torch fp32"]
    for one in ours[:1]:
        assert bench.reference is not None
        text = (
            f"On the same runtime the student is {one.speed_up:.2f} times as fast as {bench.reference.name} "
            f"({1 / one.high:.2f} to {1 / one.low:.2f} over {one.rounds} rounds)"
        )
        small = None if bench.subject is None else bench.subject.gflops_per_tile
        large = bench.reference.gflops_per_tile
        text += f" and computes {small / large:.0%} of its operations." if small and large else "."
        rule = "torch fp32, both measured in turns; median of the rounds' ratios"
        findings.append(VerdictReason(status="info", text=text, rule=rule))
    findings += [
        VerdictReason(status="reserved", text=f"While latency was measured, {words}.", rule="a machine left to itself")
        for words in reservations(bench)
    ]
    return findings


def _latency(benches: Sequence[Bench]) -> list[VerdictReason]:
    findings = []
    for bench in benches:
        measured = [cell for cell in bench.cells if cell.latency is not None and cell.role == "bundle"]
        if measured:
            best = min(measured, key=lambda cell: cell.latency.per_tile.p50_ms if cell.latency else 0.0)
            assert best.latency is not None
            device = best.engine.device if best.engine else "an unknown device"
            findings.append(
                VerdictReason(
                    status="info",
                    text=f"The fastest engine measured, {best.backend} {best.precision} at batch {best.batch}, takes "
                    f"{best.latency.per_tile.p50_ms:.3g} ms per tile (median) on {device}.",
                    rule=bench.scope,
                )
            )
        findings += _beside(bench)
        for cell in bench.cells:
            name = f"{cell.backend} {cell.precision} at batch {cell.batch}"
            if cell.failure is not None:
                findings.append(
                    VerdictReason(status="reserved", text=f"{name}: {cell.failure}", rule="every cell measured")
                )
            elif cell.latency is not None and not cell.latency.stability.stable:
                stability = cell.latency.stability
                text = f"{name} was measured on a machine that did not hold still: {stability.reason}."
                findings.append(VerdictReason(status="reserved", text=text, rule=stability.rule))
        if bench.partial:
            findings.append(
                VerdictReason(
                    status="reserved", text="The measurement of latency was interrupted.", rule="all rounds taken"
                )
            )
    return findings
