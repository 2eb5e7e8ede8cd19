"""report.json: all results of one detector in a single file."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from deploy.accuracy.evaluation import Evaluation
from deploy.accuracy.provenance import now
from deploy.bench.bench_result import Bench
from deploy.parity.parity_result import Parity
from deploy.report.reported_scene import ReportedScene
from deploy.report.verdict import Verdict, reach_verdict
from ifkd import __version__
from ifkd.core.config import Schema


class Report(Schema):
    """The result of `ifkd report`."""

    schema_version: Literal[2] = 2
    kind: Literal["report"] = "report"
    title: str
    created: str
    """UTC, ISO 8601."""
    producer: str
    verdict: Verdict
    notes: tuple[str, ...]
    """Conditions and limits of the figures."""
    evaluations: dict[str, Evaluation]
    """By the name in the tables."""
    benches: tuple[Bench, ...]
    parities: tuple[Parity, ...]
    scenes: tuple[ReportedScene, ...]
    environment: dict[str, Any]
    """Environment of the measurement of latency; without one, of the report."""


def assemble(
    *,
    title: str,
    evaluations: Mapping[str, Evaluation],
    benches: Sequence[Bench] = (),
    parities: Sequence[Parity] = (),
    scenes: Sequence[ReportedScene] = (),
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> Report:
    """Return a report of results with its verdict; any kind of result may be absent."""
    provenances = [one.model.provenance for one in evaluations.values()]
    bundles = [*(one.bundle for one in benches), *(one.bundle for one in parities)]
    provenances += [bundle.provenance for bundle in bundles]
    cell_notes = [f"{cell.note}." for bench in benches for cell in bench.cells if cell.note]
    measured = next((bench.environment for bench in benches), None)
    return Report(
        title=title,
        created=now(),
        producer=f"ifkd {__version__}",
        verdict=reach_verdict(evaluations, benches, parities),
        notes=tuple(dict.fromkeys([*notes, *_recorded_notes(provenances), *cell_notes])),
        evaluations=dict(evaluations),
        benches=tuple(benches),
        parities=tuple(parities),
        scenes=tuple(scenes),
        environment=dict(measured if measured is not None else environment or {}),
    )


def _recorded_notes(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the notes that training and export recorded."""
    notes: list[str] = []
    for provenance in provenances:
        recorded = provenance.get("notes", ())
        notes += [recorded] if isinstance(recorded, str) else [str(note) for note in recorded]
    return notes
