"""Compare the detections of a bundle's engine files with those of the torch reference.

Both sides start from the image files and end with detections. A file passes when the differences of matched detections
and the changes of the COCO metrics are within the tolerances of its precision; otherwise the result states the patterns
of the drift and the step of the pipeline where it starts.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from deploy.accuracy.evaluated_model import EvaluatedModel
from deploy.accuracy.evaluation import detect_dataset
from deploy.accuracy.image_detection import ImageResult, PipelineHooks, TilingConfig, detect_images, prepare_tiles
from deploy.accuracy.provenance import BundleRecord, DataRecord, EngineRecord, now
from deploy.engines.engine import Backend, Engine
from deploy.parity.drift import describe_drift, measure_drift
from deploy.parity.drift_crops import worst_crops
from deploy.parity.drift_source import DriftSource, TileDrift, find_drift_source, tile_drift
from deploy.parity.matching import Matching, PairingCriteria, match
from deploy.parity.parity_result import ClassParity, Parity, ParityCell, UnmatchedRecord, failed_cell, overall_verdict
from deploy.parity.scene_parity import SceneParity, SceneReference, read_scene_labels
from deploy.parity.tolerances import (
    DetectionTolerances,
    ToleranceCheck,
    ToleranceTable,
    check_tolerances,
    compared_fields,
)
from deploy.scene.read.scene import Scene
from deploy.scene.run.executor import LocalExecutor
from deploy.scene.screen.screen_network import ScreenNetwork
from deploy.scene.screen_search import ScreenSearch, compare_searches
from deploy.scene.settings import settings_for
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from ifkd.core.detections import Array, Candidates, Detections
from ifkd.data.coco import CocoDataset
from ifkd.data.metrics import Metrics, evaluate
from ifkd.imagery.image_files import read_image

logger = logging.getLogger(__name__)

MAX_UNMATCHED = 100
BGR_TEST_IMAGES = 4
BGR_AGREEMENT = 0.95
BGR_GAIN = 0.01
"""Least agreement with reversed channels, and least gain over RGB, for an engine that takes BGR."""

R = TypeVar("R", ParityCell, SceneParity)


@dataclass(frozen=True, slots=True, eq=False)
class ParityPlan:
    """The resolved arguments of `ifkd parity`."""

    bundle: Bundle
    model: EvaluatedModel
    dataset: CocoDataset
    engines: tuple[tuple[Backend, Precision], ...]
    tolerances: ToleranceTable
    batch: int
    """Tiles that are run together."""
    threads: int | None
    """CPU threads of the runtimes; None for their own choice."""
    scene: Path | None = None
    """Raster to compare on as well."""
    ground_truth: Path | None = None
    """Labels of the scene."""

    def open_engine(self, backend: Backend, precision: Precision) -> Engine:
        """Open an engine of the bundle."""
        return self.model.open(backend, precision, self.threads)


def run_parity(plan: ParityPlan) -> Parity:
    """Compare all engines of a plan; after Ctrl-C return what was compared, marked as partial."""
    with plan.open_engine("torch", "fp32") as engine:
        reference = ParityReference(engine, plan.dataset, plan.model.tiling, batch=plan.batch)
    cells: list[ParityCell] = []
    scenes: list[SceneParity] = []
    screens: list[ScreenSearch] = []
    partial = False
    try:
        for cell in compare_engines(plan.engines, plan.open_engine, reference.compare, plan.tolerances, failed_cell):
            cells.append(cell)  # noqa: PERF402 - keeps the cells before an interruption
        for scene in _compare_on_scene(plan):
            scenes.append(scene)  # noqa: PERF402
        for search in _searches_with_screen(plan, scenes):
            screens.append(search)  # noqa: PERF402
    except KeyboardInterrupt:
        partial = True
    passed, verdict = overall_verdict(cells, scenes, partial=partial)
    return Parity(
        created=now(),
        bundle=BundleRecord.of(plan.bundle),
        data=DataRecord.of(plan.dataset),
        postprocess=plan.model.tiling.postprocess,
        reference=reference.record,
        reference_metrics=reference.metrics,
        cells=tuple(cells),
        scenes=tuple(scenes),
        screens=tuple(screens),
        partial=partial,
        passed=passed,
        verdict=verdict,
    )


def compare_engines(
    engines: Sequence[tuple[Backend, Precision]],
    open_engine: Callable[[Backend, Precision], Engine],
    compare: Callable[[Engine, DetectionTolerances], R],
    tolerances: ToleranceTable,
    failed: Callable[[Backend, Precision, Exception], R],
) -> Iterator[R]:
    """Open engines one after the other and yield their comparisons; an engine that fails does not stop the others."""
    for backend, precision in engines:
        try:
            with open_engine(backend, precision) as engine:
                result = compare(engine, tolerances.of(precision))
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the result has it
            result = failed(backend, precision, error)
        yield result


def _compare_on_scene(plan: ParityPlan) -> Iterator[SceneParity]:
    if plan.scene is None:
        return
    manifest = plan.bundle.manifest
    with Scene(plan.scene, imagery=manifest.input.imagery) as scene:
        ground_truth = read_scene_labels(plan.ground_truth, scene, manifest.classes)
        with plan.open_engine("torch", "fp32") as engine:
            reference = SceneReference(engine, scene, settings_for(manifest), ground_truth=ground_truth)
        yield from compare_engines(plan.engines, plan.open_engine, reference.compare, plan.tolerances, reference.failed)


def _searches_with_screen(plan: ParityPlan, scenes: Sequence[SceneParity]) -> Iterator[ScreenSearch]:
    """Yield the searches with the screen of the bundle, if it has one, by the engines that ran on the scene.

    An engine that fails is logged and left out.
    """
    settings = settings_for(plan.bundle.manifest, screen="auto")
    if plan.scene is None or settings.screen is None:
        return
    ran = [engine for engine, scene in zip(plan.engines, scenes, strict=True) if scene.failure is None]
    with Scene(plan.scene, imagery=plan.bundle.manifest.input.imagery) as scene:
        for backend, precision in ran:
            open_screen = partial(ScreenNetwork, plan.bundle, backend=backend, threads=plan.threads)
            try:
                with plan.open_engine(backend, precision) as engine:
                    yield compare_searches(LocalExecutor(engine, open_screen), scene, settings)
            except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the comparison is kept
                logger.warning("No search of %s by %s %s: %s", scene.info.name, backend, precision, error)


class ParityReference:
    """Results of the torch network on a data set, computed once and compared with any number of engines."""

    def __init__(self, engine: Engine, dataset: CocoDataset, tiling: TilingConfig, *, batch: int = 4) -> None:
        self.record = EngineRecord.of(engine.info)
        self.dataset, self.tiling, self.batch = dataset, tiling, batch
        self.results = self._detect(engine, "parity: reference")
        self.metrics = evaluate(dataset, _detections(self.results))

    def compare(
        self, engine: Engine, tolerances: DetectionTolerances, *, hooks: PipelineHooks | None = None
    ) -> ParityCell:
        """Compare an engine with the reference; `hooks` are its own functions around inference, for tests.

        Raises:
            DataError: An image cannot be read.
            EngineError: Inference fails.
        """
        info = engine.info
        results = self._detect(engine, f"parity: {info.backend} {info.precision}", hooks)
        pairing = tolerances.pairing()
        matching = match(self.results, results, pairing)
        metrics = evaluate(self.dataset, _detections(results))
        drift = measure_drift(matching)
        checks = check_tolerances(matching, drift, self.metrics, metrics, tolerances)
        passed = all(check.passed for check in checks)
        symptoms = [] if passed else describe_drift(matching, drift, self.dataset.classes)
        tiles, threshold = self._compare_tiles(results, hooks), self.tiling.postprocess.score_threshold
        source = find_drift_source(
            self.results, results, tolerances, threshold=threshold, precision=info.precision, tiles=tiles
        )
        if not passed and hooks is None and self._takes_bgr(engine, pairing):
            reason = "it agrees when the channels come in reverse order: it takes BGR instead of RGB"
            symptoms.insert(0, reason)
            source = source.model_copy(update={"source": "preprocess", "reason": reason})
        return ParityCell(
            **compared_fields(info, matching, drift, checks),
            engine=EngineRecord.of(info),
            pairing=pairing,
            unmatched=_unmatched_records(matching, self.dataset),
            unmatched_count=len(matching.unmatched),
            per_class=_per_class(matching, self.dataset.classes, self.metrics, metrics),
            metrics=metrics,
            symptoms=tuple(symptoms),
            drift_source=source,
            crops=worst_crops(matching, self.dataset, self.tiling.imagery),
            verdict=_verdict(checks, symptoms, source),
        )

    def _detect(self, engine: Engine, label: str, hooks: PipelineHooks | None = None) -> dict[int, ImageResult]:
        return detect_dataset(
            engine, self.dataset, self.tiling, batch=self.batch, label=label, keep_candidates=True, hooks=hooks
        )

    def _compare_tiles(self, results: Mapping[int, ImageResult], hooks: PipelineHooks | None) -> TileDrift:
        """Compare the tiles of both sides by their digests; where these differ, prepare both again."""
        images, tiling = self.dataset.images, self.tiling
        differing = [one for one in images if results[one.id].tiles_sha256 != self.results[one.id].tiles_sha256]
        prepare = (hooks or PipelineHooks()).prepare
        pixels = (read_image(one.path, size=one.size, imagery=tiling.imagery) for one in differing)
        pairs = ((prepare_tiles(image, tiling).tiles, prepare(image, tiling).tiles) for image in pixels)
        return tile_drift(pairs, images=len(images), differing=len(differing))

    def _takes_bgr(self, engine: Engine, pairing: PairingCriteria) -> bool:
        """Return whether clearly more detections of some images agree when the engine receives BGR."""
        images = [one for one in self.dataset.images if len(self.results[one.id].detections)][:BGR_TEST_IMAGES]
        if not images:
            return False
        reference = {image.id: self.results[image.id] for image in images}

        def agreement(candidate: Engine) -> float:
            results = dict(detect_images(candidate, images, self.tiling, batch=1, keep_candidates=True))
            matching = match(reference, results, pairing)
            drift = measure_drift(matching)
            return (matching.matched_fraction() or 0.0) - (1.0 if drift is None else drift.score.mean)

        rgb, bgr = agreement(engine), agreement(_BgrEngine(engine))
        return bgr > BGR_AGREEMENT and bgr - rgb > BGR_GAIN


class _BgrEngine(Engine):
    """An engine that receives the channels in reverse order; closing it does not close the inner engine."""

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self._engine = engine

    def _run(self, tiles: Array) -> Candidates:
        return self._engine.infer(np.ascontiguousarray(tiles[:, ::-1]))

    def close(self) -> None:
        pass


def _verdict(checks: list[ToleranceCheck], symptoms: list[str], source: DriftSource) -> str:
    failed = [one for one in checks if not one.passed]
    if not failed:
        return f"passed: within all {len(checks)} tolerances"
    if any(one.name == "compared" for one in failed):
        return "failed: the reference has no detections in these images, so there is nothing to compare"
    values = [f"{one.name} {one.value:.3g} {'<' if one.at_least else '>'} {one.limit:.3g}" for one in failed]
    exceeded = f"{len(failed)} of {len(checks)} tolerances are exceeded: {', '.join(values)}"
    words = f"{'; '.join(symptoms)} ({exceeded})" if symptoms else exceeded
    return f"failed: {words}" + (f"; the drift starts at {source.source}" if source.source else "")


def _detections(results: Mapping[int, ImageResult]) -> dict[int, Detections]:
    return {image_id: result.detections for image_id, result in results.items()}


def _unmatched_records(matching: Matching, dataset: CocoDataset) -> tuple[UnmatchedRecord, ...]:
    names, classes = {image.id: image.path.name for image in dataset.images}, dataset.classes
    ordered = sorted(matching.unmatched, key=lambda one: -one.score)
    return tuple(
        UnmatchedRecord(
            image=names[one.image_id],
            missing_in="engine" if one.in_reference else "reference",
            class_name=classes[one.label],
            changed_to=None if one.changed_to is None else classes[one.changed_to],
            score=one.score,
            box_px=one.box,
        )
        for one in ordered[:MAX_UNMATCHED]
    )


def _per_class(
    matching: Matching, classes: tuple[str, ...], reference: Metrics, metrics: Metrics
) -> dict[str, ClassParity]:
    result = {}
    for label, name in enumerate(classes):
        before, after = reference.per_class[name].mean_ap, metrics.per_class[name].mean_ap
        result[name] = ClassParity(
            reference=matching.reference_count[label],
            engine=matching.engine_count[label],
            tied=matching.tied_count[label],
            matched_fraction=matching.matched_fraction(label),
            mean_ap_change=None if before is None or after is None else after - before,
        )
    return result
