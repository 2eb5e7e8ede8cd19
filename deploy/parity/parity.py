"""Parity: does an engine file find what the torch network it came from finds, in the same images?

Both start from the bytes of the image files and end at detections. The pairs' drift and the change of the COCO
metrics are held against gates; a gate that does not hold fails the file, and the report says which one and how the
drift looks (a shift, a factor on the scores, swapped channels, changed classes) and at which stage it enters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from deploy.accuracy.image_detection import ImageResult, PipelineHooks, TilingConfig, detect_images
from deploy.accuracy.provenance import BundleRecord, DataRecord, EngineRecord
from deploy.engines.engine import Backend, Engine
from deploy.parity.drift import Drift, drift_of, symptoms_of
from deploy.parity.drift_crops import Crop, worst_crops
from deploy.parity.drift_source import Location, TileDrift, locate_drift, tile_drift
from deploy.parity.matching import Matching, Pairing, match
from deploy.parity.scene_parity import SceneParity, SceneReference
from deploy.parity.tolerances import PrecisionTolerances, ToleranceCheck, Tolerances, check_tolerances
from export.bundle.manifest import Precision
from ifkd.core.config import Schema
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.core.postprocess import PostprocessConfig
from ifkd.core.progress import track
from ifkd.data.coco import CocoDataset
from ifkd.data.metrics import Metrics, evaluate
from ifkd.imagery.image_files import read_image

UNMATCHED_LISTED = 100
PROBED_IMAGES = 4


class UnmatchedCounts(Schema):
    """A detection of one side that the other side lacks, with no tie to explain it."""

    image: str
    missing_in: Literal["reference", "engine"]
    class_name: str
    became: str | None
    """The class the other side gave the same box, when it did."""
    score: float
    box_px: tuple[float, float, float, float]
    """x1, y1, x2, y2."""


class ClassParity(Schema):
    """Detections of one class on both sides."""

    reference: int
    engine: int
    tied: int
    """Detections of both sides that a tie explains."""
    matched_share: float | None
    """None without detections."""
    mean_ap_change: float | None


class ParityCell(Schema):
    """One engine against the reference."""

    backend: str
    precision: Precision
    engine: EngineRecord | None = None
    """None when it did not open."""
    failure: str | None = None
    """Why there are no figures."""
    pairing: Pairing | None = None
    reference_detections: int = 0
    engine_detections: int = 0
    tied: int = 0
    """Detections of both sides that a tie explains."""
    matched_share: float | None = None
    drift: Drift | None = None
    """None without pairs."""
    unmatched: tuple[UnmatchedCounts, ...] = ()
    """Highest scores first, the first hundred."""
    unmatched_count: int = 0
    per_class: dict[str, ClassParity] = {}
    metrics: Metrics | None = None
    gates: tuple[ToleranceCheck, ...] = ()
    symptoms: tuple[str, ...] = ()
    """What the drift looks like, where a gate failed."""
    location: Location | None = None
    """Both sides followed stage by stage, and where they part."""
    crops: tuple[Crop, ...] = ()
    """The worst drifts as pictures."""
    passed: bool
    verdict: str
    """The verdict and the gate that gave it."""


class Parity(Schema):
    """The result of `ifkd parity`."""

    schema_version: Literal[1] = 1
    kind: Literal["parity"] = "parity"
    created: str
    """UTC, ISO 8601."""
    bundle: BundleRecord
    data: DataRecord
    selection: PostprocessConfig
    reference: EngineRecord
    reference_metrics: Metrics
    cells: tuple[ParityCell, ...]
    scenes: tuple[SceneParity, ...] = ()
    """The engines on a whole scene, where one was named: after tiling and merging."""
    partial: bool = False
    """It was interrupted; what was compared until then is here."""
    passed: bool
    rule: str = "every engine holds every gate of its precision"
    verdict: str


class Reference:
    """The torch network's answers to a data set, computed once and compared with any number of engines."""

    def __init__(self, engine: Engine, dataset: CocoDataset, framing: TilingConfig, *, batch: int = 4) -> None:
        self.record = EngineRecord.of(engine.info)
        self.dataset = dataset
        self.framing = framing
        self.batch = batch
        self.answers = self._ask(engine, "parity: reference")
        self.metrics = evaluate(dataset, _detections(self.answers))

    def compare(self, engine: Engine, tolerances: Tolerances, *, steps: PipelineHooks | None = None) -> ParityCell:
        """Return how an engine compares with the reference.

        Args:
            engine: The engine.
            tolerances: The gates of its precision.
            steps: Its way from pixels to tiles and from candidates to detections, where it has one of its own.

        Raises:
            DataError: An image cannot be read.
            EngineError: The engine fails.
        """
        info = engine.info
        answers = self._ask(engine, f"parity: {info.backend} {info.precision}", steps)
        pairing = Pairing(twin_iou=max(0.5, 1 - tolerances.iou_drift_p99), twin_score=tolerances.score_p99)
        matching = match(self.answers, answers, pairing)
        metrics = evaluate(self.dataset, _detections(answers))
        drift = drift_of(matching)
        gates = check_tolerances(matching, drift, self.metrics, metrics, tolerances)
        failed = [gate for gate in gates if not gate.passed]
        symptoms = symptoms_of(matching, drift, self.dataset.classes) if failed else []
        tiles = self._tiles_apart(answers, steps)
        location = locate_drift(self.answers, answers, self.framing.selection, tolerances, info.precision, tiles=tiles)
        if failed and steps is None and self._takes_bgr(engine, pairing):
            reason = "it agrees when the channels come in reverse order: it takes BGR instead of RGB"
            symptoms.insert(0, reason)
            location = location.model_copy(update={"enters_at": "preprocess", "because": reason})
        return ParityCell(
            backend=info.backend,
            precision=info.precision,
            engine=EngineRecord.of(info),
            pairing=pairing,
            reference_detections=sum(matching.reference_count.values()),
            engine_detections=sum(matching.subject_count.values()),
            tied=sum(matching.tied_count.values()),
            matched_share=matching.matched_share(),
            drift=drift,
            unmatched=_unmatched(matching, self.dataset),
            unmatched_count=len(matching.orphans),
            per_class=_per_class(matching, self.dataset.classes, self.metrics, metrics),
            metrics=metrics,
            gates=tuple(gates),
            symptoms=tuple(symptoms),
            location=location,
            crops=worst_crops(matching, self.dataset, self.framing.imagery),
            passed=not failed,
            verdict=_verdict(gates, symptoms, location),
        )

    def _ask(self, engine: Engine, label: str, steps: PipelineHooks | None = None) -> dict[int, ImageResult]:
        answers = detect_images(
            engine,
            self.dataset.images,
            self.framing,
            batch=min(self.batch, engine.info.max_batch),
            keep_candidates=True,
            steps=steps,
        )
        return dict(track(answers, label, total=len(self.dataset), unit="img"))

    def _tiles_apart(self, answers: Mapping[int, ImageResult], steps: PipelineHooks | None) -> TileDrift:
        """Return how far the engine's tiles lie from the reference's; where bytes differ, both are made again."""
        other = [
            one for one in self.dataset.images if answers[one.id].tiles_sha256 != self.answers[one.id].tiles_sha256
        ]
        sides = (
            tuple(
                prepare(read_image(image.path, size=image.size, imagery=self.framing.imagery), self.framing).tiles
                for prepare in (PipelineHooks().prepare, (steps or PipelineHooks()).prepare)
            )
            for image in other
        )
        return tile_drift(sides, images=len(self.dataset), other=len(other))

    def _takes_bgr(self, engine: Engine, pairing: Pairing) -> bool:
        """Return whether far more detections agree, on a few images, when the engine is given BGR."""
        seen = [image for image in self.dataset.images if len(self.answers[image.id].detections)][:PROBED_IMAGES]
        if not seen:
            return False
        shares = []
        for wrap in (_same, _Swapped):
            answers = dict(detect_images(wrap(engine), seen, self.framing, batch=1, keep_candidates=True))
            matching = match({image.id: self.answers[image.id] for image in seen}, answers, pairing)
            drift = drift_of(matching)
            apart = 1.0 if drift is None else drift.score.mean
            shares.append((matching.matched_share() or 0.0) - apart)
        return shares[1] > 0.95 and shares[1] - shares[0] > 0.01


class _Swapped(Engine):
    """An engine that is shown the channels in reverse order."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self._engine = engine

    def _run(self, tiles: Array) -> Candidates:
        return self._engine.infer(np.ascontiguousarray(tiles[:, ::-1]))

    def close(self) -> None:
        """The engine belongs to another."""


def _same(engine: Engine) -> Engine:
    return engine


def verdict_of(
    cells: Sequence[ParityCell], scenes: Sequence[SceneParity] = (), *, partial: bool = False
) -> tuple[bool, str]:
    """Return the verdict over all engines, and its words; what was interrupted passes nothing."""
    if not cells and not partial:
        return False, "failed: there was no engine to compare"
    words = [f"{cell.backend} {cell.precision} {cell.verdict}" for cell in cells if not cell.passed]
    fine = {(cell.backend, cell.precision) for cell in cells if cell.passed}
    for one in scenes:
        if not one.passed:
            alone = (one.backend, one.precision) in fine
            where = "; images alone agree, so the drift enters at tiling or merge" if alone else ""
            words.append(f"{one.backend} {one.precision} failed on the scene {one.scene}: {one.verdict}{where}")
    if partial:
        words.append(f"interrupted after {len(cells)} engines on images and {len(scenes)} on the scene")
    if words:
        return False, "; ".join(words)
    names = ", ".join(f"{cell.backend} {cell.precision}" for cell in cells)
    return True, f"passed: {names} agree with torch fp32 within their gates"


def failed_cell(backend: str, precision: Precision, error: Exception) -> ParityCell:
    """Return the cell of an engine that gave no figures."""
    return ParityCell(
        backend=backend,
        precision=precision,
        failure=str(error),
        passed=False,
        verdict=f"failed: it gave no figures ({error})",
    )


def run_parity(
    reference: Reference,
    pairs: Sequence[tuple[Backend, Precision]],
    open_one: Callable[[Backend, Precision], Engine],
    gates: PrecisionTolerances,
) -> Iterator[ParityCell]:
    """Yield how engines, opened one after the other, compare with the reference; one that fails stops no other."""
    for backend, precision in pairs:
        try:
            with open_one(backend, precision) as engine:
                cell = reference.compare(engine, gates.of(precision))
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the cell says what
            cell = failed_cell(backend, precision, error)
        yield cell


def run_scene_parity(
    reference: SceneReference,
    pairs: Sequence[tuple[Backend, Precision]],
    open_one: Callable[[Backend, Precision], Engine],
    gates: PrecisionTolerances,
) -> Iterator[SceneParity]:
    """Yield how engines compare with the reference on a scene; one that fails stops no other."""
    for backend, precision in pairs:
        try:
            with open_one(backend, precision) as engine:
                found = reference.compare(engine, gates.of(precision))
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the cell says what
            found = SceneParity(
                scene=reference.scene.info.name,
                size_px=reference.scene.size,
                backend=backend,
                precision=precision,
                failure=str(error),
                passed=False,
                verdict=f"it gave no figures ({error})",
            )
        yield found


def _verdict(gates: list[ToleranceCheck], symptoms: list[str], location: Location) -> str:
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return f"passed: all {len(gates)} gates hold"
    if any(gate.name == "compared" for gate in failed):
        return "failed: the reference found nothing in these images, so there is nothing to compare"
    values = ", ".join(
        f"{gate.name} {gate.value:.3g} {'<' if gate.at_least else '>'} {gate.limit:.3g}" for gate in failed
    )
    gave_way = f"{len(failed)} of {len(gates)} gates do not hold: {values}"
    words = f"{'; '.join(symptoms)} ({gave_way})" if symptoms else gave_way
    return f"failed: {words}; the drift enters at {location.enters_at}" if location.enters_at else f"failed: {words}"


def _detections(answers: Mapping[int, ImageResult]) -> dict[int, Detections]:
    return {image_id: answer.detections for image_id, answer in answers.items()}


def _unmatched(matching: Matching, dataset: CocoDataset) -> tuple[UnmatchedCounts, ...]:
    names = {image.id: image.path.name for image in dataset.images}
    ordered = sorted(matching.orphans, key=lambda orphan: -orphan.score)
    return tuple(
        UnmatchedCounts(
            image=names[orphan.image_id],
            missing_in="engine" if orphan.in_reference else "reference",
            class_name=dataset.classes[orphan.label],
            became=None if orphan.became is None else dataset.classes[orphan.became],
            score=orphan.score,
            box_px=orphan.box,
        )
        for orphan in ordered[:UNMATCHED_LISTED]
    )


def _per_class(
    matching: Matching, classes: tuple[str, ...], reference: Metrics, metrics: Metrics
) -> dict[str, ClassParity]:
    result = {}
    for label, name in enumerate(classes):
        before, after = reference.per_class[name].mean_ap, metrics.per_class[name].mean_ap
        result[name] = ClassParity(
            reference=matching.reference_count.get(label, 0),
            engine=matching.subject_count.get(label, 0),
            tied=matching.tied_count.get(label, 0),
            matched_share=matching.matched_share(label),
            mean_ap_change=None if before is None or after is None else after - before,
        )
    return result
